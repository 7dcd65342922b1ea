"""`export`: a checkpoint whose configuration says which frequency rule the model runs with.

    with plug(model, frequency=NTKAware(factor=4)):
        report = export(model, "llama-16k")

Frequency rules are written in terms that other libraries know, so that they run them unmodified:
NTK-aware as a larger `rope_theta`, the fixed and mixed NTK rules as LongRoPE factors without its
temperature, the others by name. transformers v5 and vLLM read `rope_parameters`; for older readers
the same stands in `rope_theta` and `rope_scaling`. What each reader does with it:

    rule as written   transformers   vLLM, SGLang                llama.cpp (its converter)
    default, linear   yes            yes                         yes
    yarn              yes            its usual temperature only  its usual temperature only
    llama3            yes            yes                         yes, Llama architectures
    longrope          yes            yes                         Phi-3 architectures
    dynamic           yes            at its full extension       no

No reader knows distance rules or log n scaling. Those are noted in the configuration under
`ropewalk`, which only this library reads, and `export` warns.
"""

import copy
import json
import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropewalk.blocks.rotary import FrequencyRule, LogN
from ropewalk.kernels.rotary_attention.protocols import DistanceRule
from ropewalk.llm.frequencies import extended_slots
from ropewalk.llm.model_config import entry_of, text_config, trained_length
from ropewalk.llm.native_rotary import rotary_slots
from ropewalk.llm.plug import plug_of
from ropewalk.llm.refusals import is_plugged

CONFIG_KEY = "ropewalk"
# These derive the longest context from max_position_embeddings × factor themselves, or, dynamic,
# take max_position_embeddings for the trained length.
_KEEP_LENGTH = ("linear", "dynamic")
_CAVEATS = {
    "yarn": "vLLM, SGLang and llama.cpp apply YaRN's usual temperature, whatever attention_factor",
    "longrope": "llama.cpp reads longrope factors for Phi-3 architectures only",
    "dynamic": "vLLM and SGLang apply dynamic NTK at its full extension from the first token on; "
    "llama.cpp does not know it",
}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the folder.
        rope_parameters: as in its config.json.
        variant: the part that only this library can run, as a variant; None if there is none.
        notes: what readers should know, a sentence each.
    """

    path: Path
    rope_parameters: dict[str, Any]
    variant: str | None
    notes: tuple[str, ...]


def export(
    model: nn.Module, path: str | os.PathLike[str], *, tokenizer: Any = None
) -> ExportReport:
    """Writes a plugged model as a safetensors checkpoint that says what is plugged.

    Args:
        model: plugged as a whole; stays plugged. What is plugged replaces a variant that its
            configuration notes. An unplugged model is written as it is, such a note included.
        path: a folder that does not exist or is empty.
        tokenizer: written along if given.

    Returns:
        What was written. If a distance rule or log n scaling is plugged, it is also a warning that
        other libraries will run the checkpoint without them.

    Raises:
        TypeError: not a transformers model.
        ValueError: only a part of the model, or a whole that it is a part of, is plugged.
        FileExistsError: the folder is not empty; nothing is overwritten.
        NotADirectoryError: `path` is a file.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}")
    handle = plug_of(model)
    if handle is None and is_plugged(model):
        raise ValueError("only a part of this model is plugged; export the model plug was given")
    folder = _empty_folder(path)

    frequency = None if handle is None else handle.frequency
    variant = None if handle is None else variant_text(handle.distance, handle.log_n)
    config = text_config(model)
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if frequency is not None:
        length = trained_length(model)
        (slot, *_) = extended_slots(rotary_slots(model))
        # Plugging wrote the rule into the model's configuration.
        parameters = copy.deepcopy(parameters)
        entry = entry_of(parameters, slot.layer_type)
        _complete(entry)
        changes = _config_changes(parameters, entry, frequency, length)
        if hasattr(config, "original_max_position_embeddings"):
            # Phi 3 takes the trained length from here, over what rope_parameters say.
            changes["original_max_position_embeddings"] = length
        if entry["rope_type"] in _CAVEATS:
            notes.append(_CAVEATS[entry["rope_type"]])
    if variant is not None:
        notes.append(
            f"{variant!r} needs ropewalk (plug it in after loading): transformers, vLLM, SGLang "
            "and llama.cpp will run this checkpoint without it, and say nothing"
        )

    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    nested = config is not model.config
    if handle is not None:
        _rewrite(folder / "config.json", changes, variant, nested=nested)
    if variant is not None:
        warnings.warn(notes[-1], stacklevel=2)
    return ExportReport(folder, parameters, variant, tuple(notes))


def variant_text(distance: DistanceRule | None, log_n: LogN | None) -> str | None:
    """Distance rule and log n scaling in the grammar of variants; None if there is neither.

    The frequency rule is not in it: the checkpoint's own configuration has that, and naming it here
    too would apply it twice.
    """
    rules = [rule for rule in (distance, log_n) if getattr(rule, "name", "plain") != "plain"]
    return "+".join(map(_rule_text, rules)) or None


def _rule_text(rule: Any) -> str:
    values = ((f.name, getattr(rule, f.name)) for f in fields(rule))
    written = ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in values
        if value is not None
    )
    return f"{rule.name}:{written}"


def _complete(entry: dict[str, Any]) -> None:
    """Says the temperature under the names by which each reader looks for it."""
    if entry["rope_type"] == "longrope" and entry.get("attention_factor") is not None:
        # vLLM and SGLang derive one from the lengths otherwise.
        entry["short_mscale"] = entry["long_mscale"] = entry["attention_factor"]


def _config_changes(
    parameters: dict[str, Any], entry: dict[str, Any], rule: FrequencyRule, length: int
) -> dict[str, Any]:
    """Entries of config.json, the older names included."""
    scaled = entry["rope_type"] != "default"
    changes = {
        "rope_parameters": parameters,
        "rope_theta": entry["rope_theta"],
        "rope_scaling": entry if scaled else None,
    }
    factor = getattr(rule, "factor", None)
    if factor and entry["rope_type"] not in _KEEP_LENGTH:
        changes["max_position_embeddings"] = max(round(length * factor), length)
    elif entry["rope_type"] in _KEEP_LENGTH:
        changes["max_position_embeddings"] = getattr(rule, "original_length", length)
    return changes


def _empty_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, got a file; choose another path")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and export overwrites nothing; choose another path"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rewrite(path: Path, changes: dict[str, Any], variant: str | None, *, nested: bool) -> None:
    """Puts the changes into config.json; a reader never sees it half written."""
    data = json.loads(path.read_text(encoding="utf-8"))
    (data["text_config"] if nested else data).update(changes)
    data.pop(CONFIG_KEY, None)
    if variant is not None:
        data[CONFIG_KEY] = {"variant": variant}
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
