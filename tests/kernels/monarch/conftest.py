"""The oracle: the matrix itself, number by number, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

ACTIVATE = {
    None: lambda z: z,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Sizes:
    """Of a product: k blocks of p features, l blocks of s, slices of rank r."""

    tokens: int
    k: int
    p: int
    l: int  # noqa: E741 the field's letters
    s: int
    r: int


# Nothing a power of two, one of everything, many blocks, tall, wide, and no tokens.
SIZES = [
    Sizes(7, 3, 5, 2, 7, 3),
    Sizes(1, 1, 1, 1, 1, 1),
    Sizes(1, 4, 3, 5, 2, 1),
    Sizes(33, 8, 8, 8, 8, 1),
    Sizes(5, 1, 6, 3, 9, 2),
    Sizes(5, 6, 2, 1, 11, 2),
    Sizes(0, 2, 3, 2, 3, 1),
]


@dataclass
class Case:
    """The tensors of a product."""

    x: Tensor
    right: Tensor
    left: Tensor
    bias: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.x, self.right, self.left, self.bias) if t is not None]

    def to(self, *, dtype: torch.dtype | None = None, device: object = None) -> "Case":
        """Fresh leaves that want gradients."""
        return Case(
            *(
                None if t is None else t.detach().to(device, dtype).clone().requires_grad_()
                for t in (self.x, self.right, self.left, self.bias)
            )
        )


def draw(sizes: Sizes, *, bias: bool = True, seed: int = 0) -> Case:
    """A product whose results have a standard deviation of about one, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, over: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator) / over**0.5

    q = sizes
    return Case(
        normal(q.tokens, q.k * q.p),
        normal(q.k, q.l * q.r, q.p, over=q.p),
        normal(q.l, q.s, q.k * q.r, over=q.k * q.r),
        normal(q.l * q.s) if bias else None,
    )


def matrix_of(right: Tensor, left: Tensor) -> Tensor:
    """W in float64, one entry at a time."""
    (k, rows, p), (blocks, s, _) = right.shape, left.shape
    r = rows // blocks
    weight = torch.zeros(blocks * s, k * p, dtype=torch.float64)
    wide_right, wide_left = right.detach().double().cpu(), left.detach().double().cpu()
    for block in range(blocks):
        for column_block in range(k):
            for j in range(s):
                for i in range(p):
                    entry = sum(
                        wide_left[block, j, column_block * r + c]
                        * wide_right[column_block, block * r + c, i]
                        for c in range(r)
                    )
                    weight[block * s + j, column_block * p + i] = entry
    return weight


def product(case: Case, activation: str | None = None, *, block_major: bool = False) -> Tensor:
    """The result in float64 by the dense matrix; differentiable in the factors."""
    x, right, left = (t.double() for t in (case.x, case.right, case.left))
    (k, rows, p), (blocks, s, _) = right.shape, left.shape
    r = rows // blocks
    weight = torch.einsum(
        "lskr,klrp->lskp", left.view(blocks, s, k, r), right.view(k, blocks, r, p)
    ).reshape(blocks * s, k * p)
    z = x @ weight.T
    if case.bias is not None:
        z = z + case.bias.double()
    y = ACTIVATE[activation](z)
    return y.view(-1, blocks, s).transpose(0, 1) if block_major else y


@pytest.fixture(params=SIZES, ids=lambda q: f"{q.tokens}x{q.k}x{q.p}-{q.l}x{q.s}-r{q.r}")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return request.param


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """`make_case(sizes)`, or `make_case(tokens=…, k=…, p=…, l=…, s=…, r=…)`."""

    def make(sizes: Sizes | None = None, *, bias: bool = True, seed: int = 0, **numbers) -> Case:
        return draw(Sizes(**numbers) if sizes is None else sizes, bias=bias, seed=seed)

    return make


@pytest.fixture(scope="session")
def monarch_matrix() -> Callable[[Tensor, Tensor], Tensor]:
    return matrix_of


@pytest.fixture(scope="session")
def monarch_oracle() -> Callable[..., Tensor]:
    """`monarch_oracle(case, activation, block_major=…)` in float64."""
    return product
