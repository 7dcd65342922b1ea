"""Plugging rotary variants into other people's models, exporting them, and tying their heads."""

from ropewalk.blocks.heads import tie, untie
from ropewalk.llm.export import ExportReport, export
from ropewalk.llm.model_config import trained_length
from ropewalk.llm.plug import PlugHandle, plug, plug_of, unplug
from ropewalk.llm.refusals import is_plugged

__all__ = [
    "ExportReport",
    "PlugHandle",
    "export",
    "is_plugged",
    "plug",
    "plug_of",
    "tie",
    "trained_length",
    "unplug",
    "untie",
]
