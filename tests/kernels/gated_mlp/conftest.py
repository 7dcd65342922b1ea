"""The oracle: the feed-forward as the papers write it, in float64, one step at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "relu": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "identity": lambda z: z,
}


def activated(projected: Tensor, activation: str, gated: bool) -> Tensor:
    """What lies between the products, in float64."""
    z = projected.double()
    if not gated:
        return ACTIVATE[activation](z)
    hidden = z.shape[-1] // 2
    return ACTIVATE[activation](z[..., :hidden]) * z[..., hidden:]


@dataclass
class Case:
    """The tensors of a feed-forward."""

    x: Tensor
    weight_in: Tensor
    weight_out: Tensor
    bias_in: Tensor | None
    bias_out: Tensor | None

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        """In the order of `gated_mlp`'s arguments."""
        return (self.x, self.weight_in, self.weight_out, self.bias_in, self.bias_out)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in self.given if t is not None]

    def to(self, *, dtype: torch.dtype | None = None, device: object = None) -> "Case":
        """Fresh leaves that want gradients."""
        return Case(
            *(
                None if t is None else t.detach().to(device, dtype).clone().requires_grad_()
                for t in self.given
            )
        )

    def truth(self, activation: str, gated: bool) -> Tensor:
        """The result in float64, differentiable."""
        x, weight_in, weight_out, bias_in, bias_out = (
            None if t is None else t.double() for t in self.given
        )
        projected = torch.einsum("...i,oi->...o", x, weight_in)
        if bias_in is not None:
            projected = projected + bias_in
        y = torch.einsum("...i,oi->...o", activated(projected, activation, gated), weight_out)
        return y if bias_out is None else y + bias_out


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """`make_case(batch=(2, 5), dim=…, hidden=…, out=…, gated=…, bias=…)`, results of about one."""

    def make(
        *,
        batch: tuple[int, ...] = (2, 5),
        dim: int = 6,
        hidden: int = 7,
        out: int = 3,
        gated: bool = True,
        bias: bool = True,
    ) -> Case:
        width = hidden * (1 + gated)
        return Case(
            torch.randn(*batch, dim),
            torch.randn(width, dim) / dim**0.5,
            torch.randn(out, hidden) / hidden**0.5,
            torch.randn(width) if bias else None,
            torch.randn(out) if bias else None,
        ).to()

    return make


@pytest.fixture(scope="session")
def activation_oracle() -> Callable[..., Tensor]:
    """`activation_oracle(projected, activation, gated)` in float64."""
    return activated
