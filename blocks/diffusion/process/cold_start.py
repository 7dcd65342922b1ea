"""Where a cold process starts from: the law of fully degraded data, learned from examples.

A degradation has no noise, so all variety of the samples comes from their start. Two simple laws of
it: the examples themselves, and a Gaussian with their mean and covariance. The latter is what suits
degradations that leave a few numbers of each sample (a blurred picture is its mean colour):

    x = mean + Σ_i g_i·(x_i − mean)/√n,    g ~ N(0, I_n)

has exactly the covariance of the n examples, whatever the size of the data.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.diffusion.random import integers, normal_like
from ropewalk.kernels.autocast import suspended

START_LAWS = ("examples", "gaussian")


class FittedStart:
    """Draws starts like the examples.

    Args:
        examples: fully degraded data (examples, …).
        law: "examples" draws among them with replacement, "gaussian" from a Gaussian of their mean
            and covariance.

    Raises:
        ValueError: there are no examples, or the law is not known.
    """

    def __init__(self, examples: Float[Tensor, "examples ..."], law: str) -> None:
        if law not in START_LAWS:
            raise ValueError(f"law: expected one of {', '.join(START_LAWS)}, got {law!r}")
        if examples.numel() == 0:
            raise ValueError(f"data: expected examples, got shape {tuple(examples.shape)}")
        self.examples = examples.detach()
        self.law = law

    def __repr__(self) -> str:
        """The law and the shape of the examples."""
        return f"FittedStart({tuple(self.examples.shape)}, law={self.law!r})"

    def __call__(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """As many starts as shape[0] says; device and dtype are the examples' unless given.

        Raises:
            ValueError: the samples' shape is not the examples'.
        """
        shape = tuple(shape)
        if shape[1:] != self.examples.shape[1:]:
            raise ValueError(
                f"shape: expected samples of shape {tuple(self.examples.shape[1:])}, as in the "
                f"data this was fitted to, got {shape[1:]}"
            )
        device = self.examples.device if device is None else device
        dtype = dtype or self.examples.dtype
        examples, count = self.examples.to(device), self.examples.shape[0]
        if self.law == "examples":
            rows = integers(0, count, shape[:1], device, generator)
            return examples[rows].to(dtype)
        flat = examples.reshape(count, -1).to(torch.promote_types(examples.dtype, torch.float32))
        mean = flat.mean(0)
        weights = normal_like(flat.new_empty(shape[0], count), generator)
        with suspended(flat):
            drawn = mean + weights @ (flat - mean) / count**0.5
        return drawn.reshape(shape).to(dtype)
