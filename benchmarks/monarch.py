"""The workload of the Monarch product: factors, peers' calls, and the matrix itself in float64.

    W[(l s), (k p)] = Σ_r L[l, s, k, r] R[k, l, r, p]        y = x Wᵀ
    dx = dy W,   dW = dyᵀ x,   and the factors' gradients by differentiating W

A peer that multiplies by another matrix of as many parameters (low rank, block diagonal) has a
matrix of its own, and is judged by that one. Compared are all of the result and all gradients, the
worst of them counts; a product of half precision is 0.3 % off its own inputs' exact result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check

TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-5}


class Layer(NamedTuple):
    """What a peer computes.

    Attributes:
        function: y of (x, *parameters), rows (tokens, features).
        parameters: what gets a gradient beside x.
        matrix: W (features, features) of the parameters, in ordinary torch.
    """

    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    matrix: Callable[..., Tensor]


@dataclass(frozen=True)
class ProductShape:
    """Sizes of a problem: a square matrix with as many output blocks as input blocks.

    Attributes:
        features: in and out.
        blocks: of each.
        rank: of a slice; None is that of square blocks, features / blocks².
        backward: whether the gradients of x and of the factors are computed too.
    """

    tokens: int
    features: int
    blocks: int
    dtype: torch.dtype
    device: str
    rank: int | None = None
    backward: bool = True

    @property
    def slice_rank(self) -> int:
        """The rank as a number."""
        return max(1, self.features // self.blocks**2) if self.rank is None else self.rank

    @property
    def block_size(self) -> int:
        """Features of a block."""
        return self.features // self.blocks

    @property
    def factor_parameters(self) -> int:
        """Numbers in both factors."""
        return 2 * self.slice_rank * self.blocks * self.features

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        dense = self.factor_parameters / self.features**2
        dtype = str(self.dtype).removeprefix("torch.")
        return {**self.__dict__, "rank": self.slice_rank, "dtype": dtype, "of_dense": dense}


class ProductWorkload:
    """Inputs of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        x: (tokens, features).
        right: (blocks, blocks · rank, block size), `left`: (blocks, block size, blocks · rank).
        y_grad: (tokens, features).
    """

    def __init__(self, shape: ProductShape) -> None:
        self.shape = s = shape
        self._generator = torch.Generator(device=s.device).manual_seed(0)
        inner = s.blocks * s.slice_rank
        self.x = self.draw(s.tokens, s.features)
        self.right = self.draw(s.blocks, inner, s.block_size, over=s.block_size)
        self.left = self.draw(s.blocks, s.block_size, inner, over=inner)
        self.y_grad = self.draw(s.tokens, s.features).detach()
        self._layers: dict[str, Layer] = {}
        self._expectations: dict[Callable[..., Tensor], list[Tensor]] = {}

    def draw(self, *shape: int, over: int = 1) -> Tensor:
        """Normal numbers of variance 1 / over, which want a gradient if the problem does."""
        s = self.shape
        drawn = torch.randn(shape, generator=self._generator, device=s.device) / over**0.5
        return drawn.to(s.dtype).requires_grad_(s.backward)

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers.monarch import build

        self._layers[peer] = layer = build(peer, self)
        return lambda: self._outcome(layer)

    def check(self, peer: str) -> Check:
        """The result and all gradients."""
        layer = self._layers[peer]
        pairs = zip(self._outcome(layer), self._expected(layer), strict=True)
        errors = [distance(found.detach(), expected) for found, expected in pairs]
        return Check(worst(errors), TOLERANCES[self.shape.dtype])

    def _outcome(self, layer: Layer) -> list[Tensor]:
        """y; and the gradients of x and of the parameters, where they are wanted."""
        if not self.shape.backward:
            with torch.no_grad():
                return [layer.function(self.x, *layer.parameters)]
        y = layer.function(self.x, *layer.parameters)
        return [y, *torch.autograd.grad(y, (self.x, *layer.parameters), self.y_grad)]

    def _expected(self, layer: Layer) -> list[Tensor]:
        """The same in float64, made once for all peers with this matrix."""
        if layer.matrix not in self._expectations:
            wide = [p.detach().double().requires_grad_() for p in layer.parameters]
            matrix = layer.matrix(*wide)
            found = [self._wide_x @ matrix.detach().T]
            if self.shape.backward:
                found.append(self.y_grad.double() @ matrix.detach())
                found += torch.autograd.grad(matrix, wide, self._matrix_grad)
            self._expectations[layer.matrix] = found
        return self._expectations[layer.matrix]

    @cached_property
    def _wide_x(self) -> Tensor:
        return self.x.detach().double()

    @cached_property
    def _matrix_grad(self) -> Tensor:
        return self.y_grad.double().T @ self._wide_x
