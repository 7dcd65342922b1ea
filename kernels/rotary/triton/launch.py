"""Launches the kernels on tensors of any strides: grids, strides and constants."""

from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.rotary.rotation import Rotation
from ropewalk.kernels.rotary.triton.configurations import (
    Configuration,
    configuration,
    heads_per_program,
)
from ropewalk.kernels.rotary.triton.turn import turn_kernel
from ropewalk.kernels.rotary.triton.turn_back import turn_back_kernel
from ropewalk.kernels.sizes import ceil_divide


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run here: loads, stores and arithmetic run wherever Triton does."""
    return None


def forward(
    query: Tensor, key: Tensor, query_out: Tensor, key_out: Tensor, rotation: Rotation
) -> None:
    """Norms and rotates into `query_out` and `key_out`, which may be `query` and `key`."""
    grid = _grid(query, key, rotation, "forward")
    tensors = (query, key, query_out, key_out)
    _launch(turn_kernel, grid, tensors, (), rotation, INPLACE=query_out is query)


def backward(
    query: Tensor,
    key: Tensor,
    query_out_grad: Tensor,
    key_out_grad: Tensor,
    query_grad: Tensor,
    key_grad: Tensor,
    rotation: Rotation,
) -> tuple[Tensor | None, Tensor | None]:
    """Writes the gradients of query and key; returns those of the norms' weights."""
    grid = _grid(query, key, rotation, "backward")
    tensors = (query, key, query_out_grad, key_out_grad, query_grad, key_grad)
    sums = (
        _partial_sums(query, rotation.query_weight, grid.sizes, grid.query_chunks),
        _partial_sums(key, rotation.key_weight, grid.sizes, grid.key_chunks),
    )
    _launch(turn_back_kernel, grid, tensors, sums, rotation)
    # One order of summation, so that results repeat.
    query_sum, key_sum = (
        None if weight is None else partial.sum(0).to(weight.dtype)
        for partial, weight in zip(sums, (rotation.query_weight, rotation.key_weight), strict=True)
    )
    return query_sum, key_sum


class _Grid(NamedTuple):
    """Programs: every tile of tokens with every run of heads of queries and of keys."""

    sizes: Configuration
    tiles: int
    heads_per_program: int
    query_chunks: int
    key_chunks: int


def _grid(query: Tensor, key: Tensor, rotation: Rotation, kernel: str) -> _Grid:
    tokens = query.shape[0] * max(query.shape[2], key.shape[2])
    pairs = rotation.query_cos.shape[-1]
    sizes = configuration(query.shape[-1], pairs, query.element_size(), tokens, kernel)
    tiles = max(_tiles(query, sizes), _tiles(key, sizes))
    heads = heads_per_program(tiles, query.shape[1], key.shape[1])
    return _Grid(
        sizes, tiles, heads, ceil_divide(query.shape[1], heads), ceil_divide(key.shape[1], heads)
    )


def _tiles(x: Tensor, sizes: Configuration) -> int:
    return ceil_divide(x.shape[0] * x.shape[2], sizes.rows) if x.numel() else 0


def _launch(
    kernel: Any,
    grid: _Grid,
    tensors: tuple[Tensor, ...],
    sums: tuple[Tensor, ...],
    rotation: Rotation,
    **constants: bool,
) -> None:
    programs = grid.tiles * (grid.query_chunks + grid.key_chunks)
    if programs == 0:
        return
    query, key = tensors[:2]
    unit = gcd(16, *(stride for x in tensors for stride in x.stride()[:3]))
    strides = (n // u for x in tensors for n, u in zip(x.stride(), (unit,) * 3 + (1,), strict=True))
    with torch.cuda.device_of(query):
        kernel[(programs,)](
            *tensors,
            *_tables(rotation),
            *_weights(rotation, query),
            *sums,
            query.shape[0],
            query.shape[1],
            key.shape[1],
            query.shape[2],
            key.shape[2],
            grid.query_chunks,
            grid.key_chunks,
            grid.heads_per_program,
            rotation.eps,
            *strides,
            *_table_rows(rotation),
            HEAD_DIM=query.shape[-1],
            PAIRS=rotation.query_cos.shape[-1],
            ROWS=grid.sizes.rows,
            BLOCK_PAIRS=grid.sizes.block_pairs,
            BLOCK_REST=grid.sizes.block_rest,
            INTERLEAVED=rotation.layout == "interleaved",
            INVERSE=rotation.inverse,
            QUERY_NORM=rotation.query_weight is not None,
            KEY_NORM=rotation.key_weight is not None,
            UNIT=unit,
            num_warps=grid.sizes.num_warps,
            **constants,
        )


def _tables(rotation: Rotation) -> tuple[Tensor, ...]:
    tables = (rotation.query_cos, rotation.query_sin, rotation.key_cos, rotation.key_sin)
    return tuple(table.float().contiguous() for table in tables)


def _table_rows(rotation: Rotation) -> tuple[int, int]:
    """Rows between the tables of two sequences; 0 where all share one."""
    tables = (rotation.query_cos, rotation.key_cos)
    query, key = (0 if len(table) == 1 else table.shape[1] for table in tables)
    return query, key


def _weights(rotation: Rotation, anything: Tensor) -> tuple[Tensor, Tensor]:
    """The norms' weights; without a norm a pointer that is not followed."""
    query, key = rotation.query_weight, rotation.key_weight
    return (
        anything if query is None else query.contiguous(),
        anything if key is None else key.contiguous(),
    )


def _partial_sums(x: Tensor, weight: Tensor | None, sizes: Configuration, chunks: int) -> Tensor:
    rows = 0 if weight is None else _tiles(x, sizes) * chunks
    return x.new_empty((rows, x.shape[-1]), dtype=torch.float32)
