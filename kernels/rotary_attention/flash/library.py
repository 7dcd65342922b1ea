"""Attention that exists: what the composition in launch.py asks of it, and who can answer.

A library computes causal attention with an optional sliding window, or full attention, and the
logsumexp; and its backward for *given* output and logsumexp. Handed those of the whole, merged
attention, the backward of a part gives exactly the part's share of the gradients, because it
recomputes p = exp(s − lse) and uses Δ = ⟨do, o⟩ (arXiv 2307.08691, §3.1.2).

    cpu.py          torch's fused attention for CPUs
    cuda.py         flash-attn if it is installed, else the flash attention inside torch

Tensors are folded: a row is one key-value head of one sequence, with its group of query heads.

    query, output   (rows, groups, query, dim)
    key, value      (rows, key, dim)
    logsumexp       (rows, groups, query)

Queries and keys end together: the last query sees the last key.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem


class Shape(NamedTuple):
    """What a query sees.

    Attributes:
        causal: whether the last query sees all keys, and each one before it one key less.
        window: under `causal`, how many keys a query sees at most; None for all.
        scale: factor on the scores.
        softcap: bound on them.
        deterministic: whether gradients may not depend on the order of work.
    """

    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    deterministic: bool


class Share(NamedTuple):
    """Attention of some of the queries to some of the keys; shares are merged by logsumexp.

    Attributes:
        groups: which groups.
        queries: which queries.
        output: theirs, free to be overwritten.
        logsumexp: theirs.
    """

    groups: slice
    queries: slice
    output: Tensor
    logsumexp: Tensor


class Library(Protocol):
    """One implementation of windowed attention."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why it cannot answer, or None."""
        ...

    def dtype(self, query: Tensor) -> torch.dtype:
        """The dtype that it wants for a problem whose query is this."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Iterator[Share]:
        """Attention in one share or several."""
        ...

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        results: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
        shape: Shape,
    ) -> None:
        """Adds gradients of query, key and value to `gradients`.

        Args:
            tensors: query, key and value.
            results: output and logsumexp of the whole attention, and the output's gradient.
            gradients: of query, key and value, changed in place.
            shape: as in `attend`.
        """
        ...
