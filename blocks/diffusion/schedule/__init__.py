"""Noise schedules: α and σ over time, t = 0 data and t = 1 noise.

schedule.py        Schedule: what they have in common; a schedule of one's own starts here
rectified_flow.py  RectifiedFlow: straight lines
cosine.py          Cosine
"""

from ropewalk.blocks.diffusion.schedule.cosine import Cosine
from ropewalk.blocks.diffusion.schedule.rectified_flow import RectifiedFlow
from ropewalk.blocks.diffusion.schedule.schedule import Schedule

__all__ = ["Cosine", "RectifiedFlow", "Schedule"]
