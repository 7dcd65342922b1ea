"""Other people's models: variants plugged in and exported, heads tied, many contexts asked."""

from ropewalk.blocks.heads import tie, untie
from ropewalk.llm.export import ExportReport, export
from ropewalk.llm.model_config import trained_length
from ropewalk.llm.nbce import NBCE, MergedDecoding
from ropewalk.llm.plug import PlugHandle, plug, plug_of, unplug
from ropewalk.llm.refusals import is_plugged

__all__ = [
    "ExportReport",
    "MergedDecoding",
    "NBCE",
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
