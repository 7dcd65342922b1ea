"""`ropewalk::rotary_attention` as a torch operator: schema, fake tensors and autograd.

The operator takes tensors and numbers only. What a distance rule means has already been turned into
the positions of each branch, (branches, 1 | batch, sequence), and the thresholds between branches,
so that neither the operator nor a kernel behind it knows a rule by name. The backward is an
operator of its own, because it walks blocks as the forward does and must stay opaque to compilers.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.rotary_attention import reference
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.protocols import Layout
from ropewalk.kernels.rotary_attention.schedule import Visibility


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_frequencies: Tensor,
    attention_factor: Tensor,
    query_angles: Tensor,
    key_angles: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    query_factor: Tensor | None,
    sinks: Tensor | None,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
    edges: list[int],
    unit: int,
    layout: str,
    causal: bool,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Problem:
    return Problem(
        query=query,
        key=key,
        value=value,
        inverse_frequencies=inverse_frequencies,
        attention_factor=attention_factor,
        query_angles=query_angles,
        key_angles=key_angles,
        query_factor=query_factor,
        sinks=sinks,
        layout=cast("Layout", layout),
        scale=scale,
        softcap=softcap,
        visibility=Visibility(
            query_positions=query_positions,
            key_positions=key_positions,
            edges=tuple(edges),
            unit=unit,
            causal=causal,
            sliding_window=sliding_window,
            key_lengths=key_lengths,
            attention_mask=attention_mask,
        ),
    )


# The schedule is read back to the host, which a CUDA graph cannot record; the tag keeps compilers
# from putting the operator into one (transformers' `generate` with a static cache would).
_TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("ropewalk::rotary_attention", mutates_args=(), tags=_TAGS)
def rotary_attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_frequencies: Tensor,
    attention_factor: Tensor,
    query_angles: Tensor,
    key_angles: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    query_factor: Tensor | None,
    sinks: Tensor | None,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
    edges: list[int],
    unit: int,
    layout: str,
    causal: bool,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp; see `problem.Problem` for the arguments."""
    problem = _problem(
        query, key, value, inverse_frequencies, attention_factor, query_angles, key_angles,
        query_positions, key_positions, query_factor, sinks, key_lengths, attention_mask,
        edges, unit, layout, causal, scale, sliding_window, softcap,
    )  # fmt: skip
    with suspended(query):
        return reference.forward(problem)


@rotary_attention_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    statistics = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(*query.shape[:-1], value.shape[-1]),
        query.new_empty(query.shape[:-1], dtype=statistics),
    )


@torch.library.custom_op("ropewalk::rotary_attention_backward", mutates_args=(), tags=_TAGS)
def rotary_attention_backward_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_frequencies: Tensor,
    attention_factor: Tensor,
    query_angles: Tensor,
    key_angles: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    query_factor: Tensor | None,
    sinks: Tensor | None,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor,
    edges: list[int],
    unit: int,
    layout: str,
    causal: bool,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks)."""
    problem = _problem(
        query, key, value, inverse_frequencies, attention_factor, query_angles, key_angles,
        query_positions, key_positions, query_factor, sinks, key_lengths, attention_mask,
        edges, unit, layout, causal, scale, sliding_window, softcap,
    )  # fmt: skip
    with suspended(query):
        gradients = reference.backward(problem, output, logsumexp, grad_output, grad_logsumexp)
    # Compilers take the strides that the fake tensors have, whatever the layout of the inputs.
    query_grad, key_grad, value_grad, sinks_grad = (x.contiguous() for x in gradients)
    return query_grad, key_grad, value_grad, sinks_grad


@rotary_attention_backward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, sinks = *arguments[:3], arguments[10]
    no_sinks = query.new_empty(0, dtype=torch.promote_types(query.dtype, torch.float32))
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        no_sinks if sinks is None else sinks.new_empty(sinks.shape),
    )


TENSORS = 13


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:TENSORS], *output)
    ctx.constants = inputs[TENSORS:]


def _backward(ctx: Any, grad_output: Tensor, grad_logsumexp: Tensor) -> tuple[Any, ...]:
    saved, constants = ctx.saved_tensors, ctx.constants
    gradients = rotary_attention_backward_op(*saved, grad_output, grad_logsumexp, *constants)
    result: list[Tensor | None] = [None] * (TENSORS + len(constants))
    result[:3] = gradients[:3]
    result[10] = gradients[3] if saved[10] is not None else None
    return tuple(result)


rotary_attention_op.register_autograd(_backward, setup_context=_save)
