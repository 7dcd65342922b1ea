"""The attention function that a plugged model calls, registered with transformers as "ropewalk".

It keeps no state: what a layer computes hangs on the layer (`LayerPlug`), where the positions are
comes with the mask (`mask_plan`) and with `position_ids`, and stays with the mask (`places`). So
two models can be plugged differently at once, a plugged model can be copied, and a layer that is
recomputed in the backward pass computes the same again.

Queries and keys arrive unrotated (`rotary_wrapper`) and, under grouped-query attention, unrepeated.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ropewalk.blocks.rotary import LogN, Plain
from ropewalk.kernels.rotary_attention import Backend, rotary_attention
from ropewalk.kernels.rotary_attention.protocols import DistanceRule, Layout, Rotary
from ropewalk.llm.mask_plan import KeysAndQueries, is_plan, make_plan
from ropewalk.llm.places import Places, explicit, places_of

NAME = "ropewalk"
LAYER_ATTRIBUTE = "_ropewalk_layer"
PLAIN = Plain()


@dataclass(frozen=True)
class FixedRotary:
    """Given frequencies as a `Rotary`: what a model has, rather than what a rule says.

    Attributes:
        frequencies: float32 (rotary_dim / 2).
        factor: on cos and sin.
        layout: which dimensions are pairs.
    """

    frequencies: Tensor
    factor: float = 1.0
    layout: Layout = "half"

    @property
    def rotary_dim(self) -> int:
        return 2 * self.frequencies.shape[0]

    def inverse_frequencies(self, length: int | Tensor | None = None) -> Tensor:
        """The given frequencies, whatever the length."""
        return self.frequencies

    def attention_factor(self, length: int | Tensor | None = None) -> float:
        """The given factor, whatever the length."""
        return self.factor


@dataclass(frozen=True)
class LayerPlug:
    """What one attention layer computes.

    Attributes:
        rotary: frequencies and layout; None for a layer without rotary position.
        trailing: whether the rotated dimensions are the last of a head and not the first.
        distance: which relative position a score sees.
        log_n: factor on the queries by position.
        sliding_window: keys at this distance and beyond are hidden.
        backend: who computes it.
        read: of how many of the last queries the output is read, see `last_queries`; None for all.
    """

    rotary: Rotary | None
    trailing: bool = False
    distance: DistanceRule = PLAIN
    log_n: LogN | None = None
    sliding_window: int | None = None
    backend: Backend = "auto"
    read: int | None = None


def ropewalk_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key value_dim"],
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch query heads value_dim"], None]:
    """Attention of one layer of a plugged model; the signature is transformers'.

    Args:
        module: the layer, which carries a `LayerPlug`.
        query: unrotated.
        key: unrotated, cached keys included.
        value: of the keys.
        attention_mask: a plan from `make_plan`, or a mask (batch, 1, query, key).
        dropout: must be 0.
        scaling: factor on the scores.
        softcap: bound on the scores (Gemma 2).
        s_aux: a sink's logit per head (GPT-OSS).
        position_ids: (1 | batch, query).
        others: `sliding_window` and more that the mask already says; what would change the result
            is refused.

    Returns:
        The output, and None for the attention weights.

    Raises:
        ValueError: the layer is not plugged, or something is asked for that is not supported.
    """
    plug = getattr(module, LAYER_ATTRIBUTE, None)
    if plug is None:
        raise ValueError(
            f"{type(module).__name__} was asked for attention {NAME!r} without being plugged; use "
            "ropewalk.llm.plug(model, …) instead of setting attn_implementation"
        )
    _refuse_unsupported(dropout, others)
    if position_ids is None or attention_mask is None:
        raise ValueError(
            "the model handed no positions or no mask to its attention; call the whole model, "
            "not one of its layers"
        )
    where = _where(attention_mask, position_ids, query, key)
    rotary = plug.rotary
    if rotary is not None and plug.trailing:
        query, key = (_leading(x, rotary.rotary_dim) for x in (query, key))
    unread = 0 if plug.read is None else max(0, query.shape[2] - plug.read)
    if unread:
        query, where = query[:, :, unread:], where.without_first(unread)
    output = rotary_attention(
        query,
        key,
        value,
        rotary=rotary,
        distance=plug.distance,
        query_positions=where.query_positions,
        key_positions=where.key_positions,
        scale=scaling,
        log_n=plug.log_n,
        # A mask that is no plan says everything itself.
        sliding_window=plug.sliding_window if is_plan(attention_mask) else None,
        softcap=softcap,
        sinks=s_aux,
        key_lengths=where.key_lengths,
        attention_mask=where.visible,
        length=where.length,
        backend=plug.backend,
    )
    output = cast("Tensor", output).transpose(1, 2)
    if unread:
        return nn.functional.pad(output, (0, 0, 0, 0, unread, 0)), None
    return output.contiguous(), None


def register() -> None:
    """Makes the attention function and the mask function known to transformers."""
    AttentionInterface.register(NAME, ropewalk_attention)
    # Without a mask function of the same name, transformers would silently pass no mask at all.
    AttentionMaskInterface.register(NAME, make_plan)


def _where(mask: Tensor, position_ids: Tensor, query: Tensor, key: Tensor) -> Places:
    if position_ids.ndim != 2:
        raise ValueError(
            f"position_ids: expected (batch, sequence), got {tuple(position_ids.shape)}; positions "
            "on several axes (mRoPE) have no distance rule, unplug the model for such inputs"
        )
    if is_plan(mask):
        return places_of(mask, position_ids, query, key)
    if mask.ndim != 4 or key.shape[-2] != query.shape[-2]:
        raise ValueError(
            f"got a mask of shape {tuple(mask.shape)} together with cached keys, which does not "
            "say where those keys are; pass attention_mask as (batch, sequence), 0 at padding"
        )
    position_ids = position_ids.to(query.device)
    if not torch.compiler.is_compiling():
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        later = position_ids[:, None, None, :] > position_ids[:, None, :, None]
        if (visible & later).any():
            raise ValueError(
                "the mask lets queries see later keys, and distance rules are defined for keys "
                "that come before the query only; unplug the model for such masks"
            )
    return explicit(KeysAndQueries(position_ids, position_ids, mask))  # type: ignore[arg-type]


def _refuse_unsupported(dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise ValueError(
            f"attention dropout {dropout} is not supported by a plugged model; set "
            "`attention_dropout` of its attention layers to 0 or call model.eval()"
        )
    if others.get("output_attentions"):
        raise ValueError(
            "a plugged model computes no attention weights to return; drop output_attentions=True"
        )
    for name in ("position_bias", "cache", "head_mask"):
        if others.get(name) is not None:
            raise ValueError(f"a plugged model does not support {name!r}; unplug it for that")


def _leading(x: Tensor, rotary_dim: int) -> Tensor:
    """The trailing `rotary_dim` dimensions first; scores do not mind a permutation of both."""
    return torch.cat((x[..., -rotary_dim:], x[..., :-rotary_dim]), dim=-1)
