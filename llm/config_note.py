"""What a configuration says to this library alone, under its key `ropewalk`.

{"variant": "rerope:window=1024+log-n:length=4096", "trained_length": 4096}

variant          the rules no other library knows, which the model is to be run with
trained_length   the length the model was trained at, where the rest of the configuration would
                 say another (NTK-aware is written as a larger base and a longer context)
"""

from dataclasses import fields, is_dataclass
from typing import Any

from ropewalk.blocks.rotary import LogN
from ropewalk.kernels.rotary_attention.protocols import DistanceRule

CONFIG_KEY = "ropewalk"


def noted_length(config: Any) -> int | None:
    """The trained length that a model's configuration notes, None if it notes none."""
    note = getattr(config, CONFIG_KEY, None)
    length = note.get("trained_length") if isinstance(note, dict) else None
    return length if isinstance(length, int) and length > 0 else None


def make_note(variant: str | None, length: int | None) -> dict[str, Any]:
    """The value of the key; empty if there is nothing to note."""
    entries = {"variant": variant, "trained_length": length}
    return {name: value for name, value in entries.items() if value is not None}


def put_note(config: Any, note: dict[str, Any]) -> None:
    """Replaces what a configuration notes."""
    if note:
        setattr(config, CONFIG_KEY, note)
    elif hasattr(config, CONFIG_KEY):
        delattr(config, CONFIG_KEY)


def variant_text(distance: DistanceRule | None, log_n: LogN | None) -> str | None:
    """Distance rule and log n scaling in the grammar of variants; None if there is neither.

    The frequency rule is not in it: the checkpoint's own configuration has that, and naming it here
    too would apply it twice.
    """
    rules = [rule for rule in (distance, log_n) if rule is not None and _name(rule) != "plain"]
    return "+".join(map(_rule_text, rules)) or None


def _name(rule: Any) -> str:
    return getattr(rule, "name", type(rule).__name__)


def _rule_text(rule: Any) -> str:
    # A rule of the user's own may be anything that satisfies the protocol.
    values = [(f.name, getattr(rule, f.name)) for f in fields(rule)] if is_dataclass(rule) else []
    written = ",".join(
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in values
        if value is not None
    )
    return f"{_name(rule)}:{written}" if written else _name(rule)
