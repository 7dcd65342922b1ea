"""`ropewalk::rotary_attention` as a torch operator: schema, fake tensors and autograd.

The operator takes tensors and numbers only. What a distance rule means has already been turned into
the numbers of its position maps and the thresholds between branches, so that neither the operator
nor a kernel behind it knows a rule by name. Positions that are the default ones are not passed, so
that nothing is launched before the operator. The backward is an operator of its own, because it
walks blocks as the forward does and must stay opaque to compilers.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.rotary_attention import varlen
from ropewalk.kernels.rotary_attention.backend import implementation
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.protocols import Layout, maps_of

# In the order in which `_problem` takes them. What autograd saves lies between the two.
TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor inverse_frequencies, "
    "Tensor? attention_factor, Tensor? query_positions, Tensor? key_positions, "
    "Tensor? query_factor, Tensor? sinks, Tensor? key_lengths, Tensor? attention_mask, "
    "Tensor? cu_seqlens_query, Tensor? cu_seqlens_key"
)
SAVED = "Tensor output, Tensor logsumexp, Tensor grad_output, Tensor grad_logsumexp"
CONSTANTS = (
    "float[] maps, int[] edges, int unit, str layout, bool causal, float factor, float scale, "
    "int? sliding_window, float? softcap, str backend, bool deterministic"
)
TENSOR_COUNT, SAVED_COUNT = TENSORS.count(",") + 1, SAVED.count(",") + 1
SINKS = 8


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_frequencies: Tensor,
    attention_factor: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    query_factor: Tensor | None,
    sinks: Tensor | None,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
    cu_seqlens_query: Tensor | None,
    cu_seqlens_key: Tensor | None,
    maps: list[float],
    edges: list[int],
    unit: int,
    layout: str,
    causal: bool,
    factor: float,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    backend: str,
    deterministic: bool,
) -> tuple[Problem, str]:
    """The problem and the backend that was asked for."""
    problem = Problem(
        query=query,
        key=key,
        value=value,
        inverse_frequencies=inverse_frequencies,
        factor=factor if attention_factor is None else attention_factor,
        query_positions=query_positions,
        key_positions=key_positions,
        query_factor=query_factor,
        sinks=sinks,
        key_lengths=key_lengths,
        attention_mask=attention_mask,
        branches=maps_of(maps),
        edges=tuple(edges),
        unit=unit,
        layout=cast("Layout", layout),
        causal=causal,
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
        deterministic=deterministic,
        cu_seqlens_query=cu_seqlens_query,
        cu_seqlens_key=cu_seqlens_key,
    )
    return problem, backend


# The schedule is read back to the host, which a CUDA graph cannot record; the tag keeps compilers
# from putting the operator into one (transformers' `generate` with a static cache would).
_TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op(
    "ropewalk::rotary_attention",
    mutates_args=(),
    schema=f"({TENSORS}, {CONSTANTS}) -> (Tensor, Tensor)",
    tags=_TAGS,
)
def rotary_attention_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output and logsumexp; see `problem.Problem` for the arguments."""
    problem, backend = _problem(*arguments)
    # Here and not where the user calls, so that compiled code checks too.
    varlen.check_lengths(problem)
    # Triton launches on the current device, which need not be the tensors'.
    with suspended(problem.query), torch.cuda.device_of(problem.query):
        output, logsumexp = implementation(problem, backend).forward(problem)
    # Compilers take the strides that the fake tensors have.
    return output.contiguous(), logsumexp.contiguous()


@rotary_attention_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    statistics = torch.promote_types(query.dtype, torch.float32)
    return (
        query.new_empty(*query.shape[:-1], value.shape[-1]),
        query.new_empty(query.shape[:-1], dtype=statistics),
    )


@torch.library.custom_op(
    "ropewalk::rotary_attention_backward",
    mutates_args=(),
    schema=f"({TENSORS}, {SAVED}, {CONSTANTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def rotary_attention_backward_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks)."""
    tensors, rest = arguments[:TENSOR_COUNT], arguments[TENSOR_COUNT:]
    saved, constants = rest[:SAVED_COUNT], rest[SAVED_COUNT:]
    problem, backend = _problem(*tensors, *constants)
    with suspended(problem.query), torch.cuda.device_of(problem.query):
        gradients = implementation(problem, backend).backward(problem, *saved)
    # As in the forward, whatever the layout of the inputs.
    query_grad, key_grad, value_grad, sinks_grad = (x.contiguous() for x in gradients)
    return query_grad, key_grad, value_grad, sinks_grad


@rotary_attention_backward_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value, sinks = *arguments[:3], arguments[SINKS]
    no_sinks = query.new_empty(0, dtype=torch.promote_types(query.dtype, torch.float32))
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        no_sinks if sinks is None else sinks.new_empty(sinks.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:TENSOR_COUNT], *output)
    ctx.constants = inputs[TENSOR_COUNT:]


def _backward(ctx: Any, grad_output: Tensor, grad_logsumexp: Tensor) -> tuple[Any, ...]:
    saved, constants = ctx.saved_tensors, ctx.constants
    gradients = rotary_attention_backward_op(*saved, grad_output, grad_logsumexp, *constants)
    result: list[Tensor | None] = [None] * (TENSOR_COUNT + len(constants))
    result[:3] = gradients[:3]
    result[SINKS] = gradients[3] if saved[SINKS] is not None else None
    return tuple(result)


def _no_second_derivative(*_: Any) -> tuple[Any, ...]:
    raise NotImplementedError(
        "rotary_attention has no second derivative; leave out create_graph=True, or write the "
        "attention that is derived twice in torch's own operations"
    )


rotary_attention_op.register_autograd(_backward, setup_context=_save)
rotary_attention_backward_op.register_autograd(_no_second_derivative)
