"""The oracle: the recurrence itself, one step after another, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

STRUCTURES = ("diagonal", "block2", "dense")


@dataclass
class Scan:
    """The tensors of a scan, leaves that want gradients."""

    a: Tensor
    b: Tensor
    initial: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.a, self.b, self.initial) if t is not None]

    def to(self, *, dtype: torch.dtype | None = None, device: object = None) -> "Scan":
        """Fresh leaves; a complex dtype stays complex."""
        return Scan(
            *(
                None if t is None else t.detach().to(device, dtype).clone().requires_grad_()
                for t in (self.a, self.b, self.initial)
            )
        )


def draw(
    structure: str,
    batch: int,
    time: int,
    channels: int,
    *,
    sequences: int | None = None,
    initial: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Scan:
    """A scan whose states neither grow nor fade fast, with some coefficients above one."""
    generator = torch.Generator().manual_seed(seed)
    parts = (2,) if structure == "block2" else ()
    inner = {
        "diagonal": (channels,), "block2": (2, 2, channels), "dense": (channels, channels),
    }[structure]  # fmt: skip

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    terms = {"diagonal": 1, "block2": 2, "dense": channels}[structure]
    a = normal(batch, time, *inner) * 0.8 / terms**0.5
    rows = batch if sequences is None else sequences
    return Scan(
        a.requires_grad_(),
        normal(batch, time, *parts, channels).requires_grad_(),
        normal(rows, *parts, channels).requires_grad_() if initial else None,
    )


def steps(
    a: Tensor, b: Tensor, initial: Tensor | None, *, reverse: bool = False, bounds=None
) -> Tensor:
    """The states, differentiable; `bounds` are where packed sequences begin and end."""
    if bounds is not None:
        rows = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            own = None if initial is None else initial[i : i + 1]
            rows.append(steps(a[:, start:end], b[:, start:end], own, reverse=reverse))
        return torch.cat(rows, dim=1)
    x = b.new_zeros(b.shape[0], *b.shape[2:]) if initial is None else initial
    states = {}
    for t in range(b.shape[1])[:: -1 if reverse else 1]:
        if a.ndim == 3:
            x = a[:, t] * x + b[:, t]
        elif a.ndim == 4:
            x = torch.einsum("bij,bj->bi", a[:, t], x) + b[:, t]
        else:
            x = torch.einsum("bijc,bjc->bic", a[:, t], x) + b[:, t]
        states[t] = x
    if not states:
        return b
    return torch.stack([states[t] for t in range(b.shape[1])], dim=1)


@pytest.fixture(scope="session")
def make_scan() -> Callable[..., Scan]:
    """`make_scan(structure, batch, time, channels, sequences=…, initial=…, dtype=…, seed=…)`."""
    return draw


@pytest.fixture(scope="session")
def scan_oracle() -> Callable[..., Tensor]:
    """`scan_oracle(a, b, initial, reverse=…, bounds=…)` in the dtype of its tensors."""
    return steps


@pytest.fixture(params=STRUCTURES)
def structure(request: pytest.FixtureRequest) -> str:
    return request.param
