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
`ropewalk`, which only this library reads (`config_note`), and `export` warns. The trained length
stands there too where the configuration no longer shows it. An architecture that knows LongRoPE
only (Phi 3) gets the other rules as LongRoPE factors.
"""

import copy
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropewalk.blocks.rotary import FrequencyRule
from ropewalk.llm.config_note import CONFIG_KEY, make_note, variant_text
from ropewalk.llm.frequencies import extended_slots, refusal
from ropewalk.llm.model_config import entry_of, length_to_note, text_config, trained_length
from ropewalk.llm.native_rotary import rotary_slots
from ropewalk.llm.plug import plug_of
from ropewalk.llm.refusals import is_plugged

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
        ValueError: only a part of the model, or a whole that it is a part of, is plugged; or the
            architecture's configuration has no way to say the frequency rule.
        FileExistsError: the folder is not empty; nothing is overwritten.
        NotADirectoryError: `path` is a file.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}")
    handle = plug_of(model)
    if handle is None and is_plugged(model):
        raise ValueError("only a part of this model is plugged; export the model plug was given")
    folder = Path(path)
    _refuse_folder(folder)

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
        _complete(entry, frequency)
        changes = _config_changes(parameters, entry, frequency, length)
        reason = refusal(config, parameters)
        if reason is not None:
            raise ValueError(
                f"{type(config).__name__} cannot say {frequency!r}: {reason}; nothing was written, "
                "plug a rule that this architecture accepts"
            )
        if entry["rope_type"] in _CAVEATS:
            notes.append(_CAVEATS[entry["rope_type"]])
    if variant is not None:
        notes.append(
            f"{variant!r} needs ropewalk (plug it in after loading): transformers, vLLM, SGLang "
            "and llama.cpp will run this checkpoint without it, and say nothing"
        )

    with _new_folder(folder):
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if handle is not None:
            note = make_note(variant, length_to_note(model, changes))
            nested = config is not model.config
            _rewrite(folder / "config.json", changes, note, nested=nested)
    if variant is not None:
        warnings.warn(notes[-1], stacklevel=2)
    return ExportReport(folder, parameters, variant, tuple(notes))


def _complete(entry: dict[str, Any], rule: FrequencyRule) -> None:
    """Says the temperature under the names by which each reader looks for it."""
    if entry["rope_type"] == "longrope":
        # Readers derive one from the lengths otherwise.
        entry["attention_factor"] = float(rule.attention_factor())
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
    # What the rule's factor multiplies.
    original = getattr(rule, "original_length", None) or length
    if factor and entry["rope_type"] not in _KEEP_LENGTH:
        changes["max_position_embeddings"] = max(round(original * factor), length)
    elif entry["rope_type"] in _KEEP_LENGTH:
        changes["max_position_embeddings"] = original
    return changes


def _refuse_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, got a file; choose another path")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and export overwrites nothing; choose another path"
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Makes the folder, and leaves nothing of it where writing it fails."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if existed:
            folder.mkdir(exist_ok=True)
        raise


def _rewrite(path: Path, changes: dict[str, Any], note: dict[str, Any], *, nested: bool) -> None:
    """Puts the changes into config.json; a reader never sees it half written."""
    data = json.loads(path.read_text(encoding="utf-8"))
    (data["text_config"] if nested else data).update(changes)
    data.pop(CONFIG_KEY, None)
    if note:
        data[CONFIG_KEY] = note
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
