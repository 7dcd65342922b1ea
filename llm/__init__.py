"""Plugging rotary variants into other people's models, and exporting them."""

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
    "trained_length",
    "unplug",
]
