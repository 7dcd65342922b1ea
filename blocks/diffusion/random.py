"""Random numbers from a generator, or from torch's own where there is none.

Under `torch.compile` with symbolic sizes torch's functions refuse even `generator=None`, so the
argument is given only where there is a generator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.plain import is_plain


def _options(generator: torch.Generator | None) -> dict[str, Any]:
    return {} if generator is None else {"generator": generator}


def normal_like(x: Float[Tensor, "..."], generator: torch.Generator | None) -> Float[Tensor, "..."]:
    """Standard normal numbers of x's shape, dtype and device."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, **_options(generator))


def uniform_like(x: Tensor, generator: torch.Generator | None) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1) of x's shape and device, in float64 whatever x is."""
    return torch.rand(x.shape, dtype=torch.float64, device=x.device, **_options(generator))


def integers(
    low: int,
    high: int,
    shape: Sequence[int],
    device: torch.device | str | None,
    generator: torch.Generator | None,
) -> Int[Tensor, "..."]:
    """Integers in [low, high), each equally likely, int64."""
    return torch.randint(low, high, tuple(shape), device=device, **_options(generator))


def gamma_like(
    shape: Float[Tensor, "..."], generator: torch.Generator | None
) -> Float[Tensor, "..."]:
    """A draw from Gamma(shape, rate 1) of each entry.

    `torch.distributions.Gamma` draws with the same function, but takes no generator.
    """
    if is_plain(shape) or generator is not None:
        return torch.ops.aten._standard_gamma(shape, generator)
    return _gamma(shape)


@torch.library.custom_op(
    "ropewalk::standard_gamma", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _gamma(shape: Tensor) -> Tensor:
    """An operator around torch's, whose result has no known shape in torch 2.11."""
    return torch.ops.aten._standard_gamma(shape)


@_gamma.register_fake
def _gamma_fake(shape: Tensor) -> Tensor:
    return torch.empty_like(shape)
