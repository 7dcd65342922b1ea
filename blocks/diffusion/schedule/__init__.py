"""Noise schedules: α and σ over time, t = 0 data and t = 1 noise.

schedule.py        Schedule: what they have in common; a schedule of one's own starts here
rectified_flow.py  RectifiedFlow: straight lines
cosine.py          Cosine
linear_beta.py     LinearBeta: DDPM's limit of many steps
sigmoid.py         Sigmoid
karras.py          Karras: EDM's, variance exploding
tabulated.py       Tabulated: the steps of a discrete-time model
shifted.py         Shifted: any of them with its clock moved towards the noise
"""

from ropewalk.blocks.diffusion.schedule.cosine import Cosine
from ropewalk.blocks.diffusion.schedule.karras import Karras
from ropewalk.blocks.diffusion.schedule.linear_beta import LinearBeta
from ropewalk.blocks.diffusion.schedule.rectified_flow import RectifiedFlow
from ropewalk.blocks.diffusion.schedule.schedule import Schedule
from ropewalk.blocks.diffusion.schedule.shifted import Shifted
from ropewalk.blocks.diffusion.schedule.sigmoid import Sigmoid
from ropewalk.blocks.diffusion.schedule.tabulated import Tabulated

__all__ = [
    "Cosine",
    "Karras",
    "LinearBeta",
    "RectifiedFlow",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "Tabulated",
]
