"""Whether a model leaves out padding, tried on a few tokens.

Rows of a batch differ in length and are padded on the left. Models that take positions and a cache
of keys leave the padding out. Others have to be tried: a few recurrent ones read it as text, and
what they say of a padded row is wrong without any error.
"""

from typing import Any

import torch

from ropewalk.llm.nbce.devices import input_device
from ropewalk.llm.nbce.rehearsal import OWN_SETTINGS

# Of the range of the logits; rounding stays far below, reading padding far above.
TOLERANCE = 0.02
_PADDING, _TEXT, _STEPS = 3, 6, 3


def refuse_readers_of_padding(model: Any, pad: int) -> None:
    """Generates three tokens after a row with and without padding.

    Raises:
        ValueError: the padding makes a difference.
    """
    vocabulary = model.config.get_text_config().vocab_size
    text = (pad + 1 + torch.arange(_TEXT)) % vocabulary
    device = input_device(model)
    row = torch.cat([torch.full((_PADDING,), pad), text])[None].to(device)
    mask = (torch.arange(row.shape[1]) >= _PADDING).long()[None].to(device)
    padded, bare = (
        torch.cat(
            model.generate(
                tokens,
                attention_mask=some,
                do_sample=False,
                max_new_tokens=_STEPS,
                min_new_tokens=_STEPS,
                pad_token_id=pad,
                output_logits=True,
                num_beams=1,
                num_return_sequences=1,
                **{**OWN_SETTINGS, "return_dict_in_generate": True},
                disable_compile=True,
            ).logits
        ).float()
        for tokens, some in ((row, mask), (row[:, _PADDING:], mask[:, _PADDING:]))
    )
    scale = bare.amax(-1, keepdim=True) - bare.amin(-1, keepdim=True)
    if ((padded - bare).abs() > TOLERANCE * scale).any():
        raise ValueError(
            f"{type(model).__name__} reads padding as text, whatever its attention mask says, so "
            "rows of different lengths cannot be one batch; use a model that leaves padding out"
        )
