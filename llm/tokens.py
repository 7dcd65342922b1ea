"""What a tokenizer itself puts around a text."""

from typing import Any


def prefix_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: nothing, one token or, as GLM does, several.

    What it puts after a text, such as an end-of-text token, is no part of a document.
    """
    whole = list(tokenizer("a")["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []
