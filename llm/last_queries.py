"""The last layer's attention for the tokens whose logits are read, and for no others.

    logits_i = head(norm(x_i + o_i + mlp(x_i + o_i))),   o_i = the last layer's attention of token i

What follows a decoder's last attention treats every token on its own. Where only the logits of the
last tokens are wanted, nobody reads the other tokens' o: they are set to zero, as transformers
leaves out the head under `logits_to_keep`. Keys and values of all tokens are needed as before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from ropewalk.llm.attention_interface import LAYER_ATTRIBUTE


@contextmanager
def only_last_read(model: nn.Module, count: int) -> Iterator[None]:
    """While entered, a plugged model's logits are those it would give for its last `count` tokens.

    Those of other tokens are wrong, and so are gradients through them and hidden states. A model
    that is not plugged, that does not come with transformers, or whose last layer has no attention
    of ours, does all its work.

    Args:
        model: a causal language model of transformers, plugged or not.
        count: how many of each row's last tokens are read.
    """
    layer = _last_attention(model)
    if layer is None:
        yield
        return
    plug = getattr(layer, LAYER_ATTRIBUTE)
    shorter = replace(plug, read=count)
    setattr(layer, LAYER_ATTRIBUTE, shorter)
    try:
        yield
    finally:
        if getattr(layer, LAYER_ATTRIBUTE, None) is shorter:  # else it was unplugged inside
            setattr(layer, LAYER_ATTRIBUTE, plug)


def _last_attention(model: nn.Module) -> nn.Module | None:
    """The plugged attention of the decoder's last layer, if it is the only one there.

    Of a model of transformers' own: one with code of its own might mix tokens after it.
    """
    if not type(model).__module__.startswith("transformers."):
        return None
    config = getattr(model, "config", None)
    if config is None:
        return None
    index = config.get_text_config().num_hidden_layers - 1
    last = [
        module
        for module in model.modules()
        if hasattr(module, LAYER_ATTRIBUTE) and getattr(module, "layer_idx", None) == index
    ]
    return last[0] if len(last) == 1 else None
