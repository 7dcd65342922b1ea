"""`forward` and `backward` of a problem by the kernels; the same signatures as reference/'s."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.chips import chip, most_registers, too_old
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.triton.backward import delta_kernel
from ropewalk.kernels.rotary_attention.triton.configurations import (
    INTERPRETED,
    Configuration,
    Kernel,
    configuration,
)
from ropewalk.kernels.rotary_attention.triton.decode import decode, suits
from ropewalk.kernels.rotary_attention.triton.forward import forward_kernel
from ropewalk.kernels.rotary_attention.triton.geometry import (
    Geometry,
    aligned_rows,
    geometry,
    packed_tiles,
    turn_back_keys,
    turn_back_queries,
    with_aligned_rows,
)
from ropewalk.kernels.rotary_attention.triton.key_gradient import key_kernel
from ropewalk.kernels.rotary_attention.triton.query_gradient import query_kernel
from ropewalk.kernels.sizes import ceil_divide, power_of_two

LARGEST_HEAD = 256
LONGEST = 2**29
MOST_HEADS = 65535
"""What the second and third dimension of a grid can count."""
DELTA_ELEMENTS = 8192
"""Of a tile of outputs; larger ones spill where rows are not aligned."""


def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Launches a kernel; the compile-time arguments are what type checkers cannot read."""
    kernel[grid](**arguments)


def unsupported(problem: Problem) -> str | None:
    """Why the kernels cannot answer a problem, or None."""
    p = problem
    widest = max(p.query.shape[-1], p.value.shape[-1])
    if widest > LARGEST_HEAD:
        return f"its kernels take heads of at most {LARGEST_HEAD} dimensions, got {widest}"
    old = too_old(p.query)
    if old is not None:
        return old
    if p.query.shape[0] * p.query.shape[1] > MOST_HEADS:
        return (
            f"its kernels take at most {MOST_HEADS} heads of all rows of the batch together, "
            f"got {p.query.shape[0]} · {p.query.shape[1]}"
        )
    if len(p.edges) > 2:
        return f"its kernels take rules of at most 3 branches, got {len(p.edges) + 1}"
    if max(p.query.shape[2], p.key.shape[2]) >= LONGEST:
        return f"its kernels take fewer than {LONGEST} queries or keys"
    return None


def _configuration(kernel: Kernel, problem: Problem) -> Configuration:
    if interpreted():
        return INTERPRETED
    p = problem
    heavy = not p.by_index or p.softcap is not None or p.attention_mask is not None
    return configuration(
        kernel,
        p.query.shape[-1],
        p.value.shape[-1],
        p.query.element_size(),
        chip(p.query.device),
        heavy=heavy or len(p.edges) > 1,
    )


def _grid_of_queries(
    problem: Problem, how: Configuration
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Programs (blocks of queries, batch · heads) and what they are told."""
    p, tiles = problem, None
    blocks = ceil_divide(p.query.shape[2], how.rows)
    if p.cu_seqlens_query is not None:
        tiles = packed_tiles(p.cu_seqlens_query, p.query.shape[2], how.rows)
        blocks = len(tiles)
    return (blocks, p.query.shape[0] * p.query.shape[1]), _told(p, how, tiles)


def _told(problem: Problem, how: Configuration, tiles: Tensor | None) -> dict[str, Any]:
    # Left alone, the assembler spills a little of such kernels to fit more of them.
    widest = max(problem.query.shape[-1], problem.value.shape[-1])
    hungry = problem.query.element_size() == 4 or not 64 <= widest <= 128
    return {
        "tiles": tiles,
        "ROWS": how.rows,
        "COLUMNS": how.columns,
        "num_warps": how.warps,
        "num_stages": how.stages,
        "maxnreg": most_registers(how.warps) if hungry else None,
    }


def _shared(g: Geometry, ordered: str) -> dict[str, Any]:
    """The shared arguments of a kernel that searches the `ordered` positions."""
    arguments = dict(g.arguments)
    widest = max(arguments["HEAD_BLOCK"], arguments["VALUE_BLOCK"])
    if arguments["PRECISION"] == "tf32x3" and widest > 64:
        # Three parts of such wide tiles fill the registers; the ordinary units do as well.
        arguments["PRECISION"] = "ieee"
    flags = {name: arguments.pop(name) for name in ("keys_ordered", "queries_ordered")}
    return arguments | {"ordered": flags[ordered]}


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and float32 logsumexp (batch, heads, query)."""
    if suits(problem):
        return decode(problem)
    p = with_aligned_rows(problem)
    output = p.query.new_empty(*p.query.shape[:-1], p.value.shape[-1])
    logsumexp = p.query.new_empty(p.query.shape[:-1], dtype=torch.float32)
    if logsumexp.numel() == 0:
        return output[..., : problem.value.shape[-1]], logsumexp
    grid, told = _grid_of_queries(p, _configuration("forward", p))
    run(
        forward_kernel,
        grid,
        **_shared(geometry(p), "keys_ordered"),
        **told,
        output=output,
        logsumexp=logsumexp,
        sinks=p.sinks,
        SINKS=p.sinks is not None,
    )
    return output[..., : problem.value.shape[-1]], logsumexp


def backward(
    problem: Problem, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks), in their dtypes."""
    p = problem
    delta = torch.empty_like(logsumexp, memory_format=torch.contiguous_format)
    logsumexp = logsumexp.contiguous()
    if min(p.query.numel(), p.key.numel()) == 0:
        zeros = [torch.zeros_like(x) for x in (p.query, p.key, p.value)]
        delta = -grad_lse.float()
        return zeros[0], zeros[1], zeros[2], _sink_gradient(p, logsumexp, delta)
    grad_output = aligned_rows(grad_output)
    value_block = power_of_two(output.shape[-1])
    delta_rows = min(64, DELTA_ELEMENTS // value_block)
    run(
        delta_kernel,
        (ceil_divide(delta.numel(), delta_rows),),
        output=output.contiguous(),
        grad_output=grad_output,
        grad_logsumexp=grad_lse.float().contiguous(),
        delta=delta,
        total=delta.numel(),
        grad_batch=grad_output.stride(0),
        grad_head=grad_output.stride(1),
        grad_row=grad_output.stride(2),
        heads=p.query.shape[1],
        queries=p.query.shape[2],
        VALUE_DIM=output.shape[-1],
        VALUE_BLOCK=value_block,
        ROWS=delta_rows,
        num_warps=4,
    )
    g = geometry(with_aligned_rows(p))
    rows: dict[str, Any] = {
        "grad_output": grad_output,
        "logsumexp": logsumexp,
        "delta": delta,
        "grad_batch": grad_output.stride(0),
        "grad_head": grad_output.stride(1),
        "grad_row": grad_output.stride(2),
    }
    grad_query = _grad_query(g, rows)
    grad_key, grad_value = _grad_key(g, rows)
    grad_query, grad_key = (x[..., : p.query.shape[-1]] for x in (grad_query, grad_key))
    grad_value = grad_value[..., : p.value.shape[-1]]
    return grad_query, grad_key, grad_value, _sink_gradient(p, logsumexp, delta)


def _grad_query(g: Geometry, rows: dict[str, Any]) -> Tensor:
    p = g.problem
    gradients = p.query.new_empty(g.branches, *p.query.shape)
    grid, told = _grid_of_queries(p, _configuration("query", p))
    run(
        query_kernel,
        (*grid, g.branches),
        **_shared(g, "keys_ordered"),
        **told,
        **rows,
        grad_query=gradients,
        gradient_branch=gradients.stride(0),
    )
    return turn_back_queries(p, gradients)


def _grad_key(g: Geometry, rows: dict[str, Any]) -> tuple[Tensor, Tensor]:
    p, how = g.problem, _configuration("key", g.problem)
    tiles = None
    blocks = ceil_divide(p.key.shape[2], how.columns)
    if p.cu_seqlens_key is not None:
        tiles = packed_tiles(p.cu_seqlens_key, p.key.shape[2], how.columns)
        blocks = len(tiles)
    split = splits_heads(p, blocks)
    programs = p.key.shape[0] * (p.query.shape[1] if split else p.key.shape[1])
    shapes = (g.branches, *p.key.shape), (g.branches, *p.value.shape)
    # Atomic additions start from zero and round only once, at the end.
    grad_keys, grad_values = (
        torch.zeros(shape, dtype=torch.float32, device=p.key.device)
        if split
        else torch.empty(shape, dtype=p.key.dtype, device=p.key.device)
        for shape in shapes
    )
    run(
        key_kernel,
        (blocks, programs, g.branches),
        **_shared(g, "queries_ordered"),
        **_told(p, how, tiles),
        **rows,
        grad_key=grad_keys,
        grad_value=grad_values,
        gradient_branch=grad_keys.stride(0),
        value_branch=grad_values.stride(0),
        SPLIT=split,
    )
    grad_value = grad_values[0] if g.branches == 1 else grad_values.sum(0)
    return turn_back_keys(p, grad_keys), grad_value.to(p.value.dtype)


def splits_heads(problem: Problem, blocks: int) -> bool:
    """Whether the heads that share a key are spread over programs, which add atomically.

    Only where there are too few programs otherwise to give every multiprocessor two.
    """
    p = problem
    if p.deterministic or p.query.shape[1] == p.key.shape[1]:
        return False
    return blocks * p.key.shape[0] * p.key.shape[1] < 2 * multiprocessors(p.query.device)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; 1 in the interpreter."""
    if interpreted():
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _sink_gradient(problem: Problem, logsumexp: Tensor, delta: Tensor) -> Tensor:
    """−Σ exp(sink − lse) Δ over rows; empty without sinks."""
    p = problem
    if p.sinks is None:
        return logsumexp.new_empty(0)
    lse = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
    weights = torch.exp(p.sinks.float()[:, None] - lse)
    return -(weights * delta).sum((0, 2)).to(p.sinks.dtype)
