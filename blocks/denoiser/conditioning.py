"""What a denoiser is told beside the data: the time, and a class.

    c = MLP(sinusoid(t)) + table[y]

The sinusoid is that of DiT, frequencies 10000^(−i/half), cosines first (arXiv 2212.09748). The last
row of the table stands for "no class", for training with labels dropped and for guidance.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

WIDTH = 256
LONGEST = 10000.0


def sinusoid(
    t: Float[Tensor, " batch"], width: int = WIDTH, *, frequency_shift: int = 0
) -> Float[Tensor, "batch width"]:
    """cos(t θ_i), sin(t θ_i) with θ_i = 10000^(−i / (width/2 − frequency_shift)), in float32.

    Args:
        t: times, in units of steps.
        width: even.
        frequency_shift: 0 as in DiT; 1 as in diffusers, where the last frequency is 1/10000.
    """
    half = width // 2
    # In the order of products in which models were trained: at step 999 a last digit of a frequency
    # is a part in 10⁴ of a turn.
    exponents = -math.log(LONGEST) * torch.arange(half, device=t.device, dtype=torch.float32)
    frequencies = torch.exp(exponents / (half - frequency_shift))
    angles = t.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Conditioning(nn.Module):
    """The embedding of time and class.

    Args:
        dim: width of the model.
        num_classes: 0 for a model without classes.
        frequency_shift: see `sinusoid`.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        frequency_shift: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.frequency_shift = num_classes, frequency_shift
        self.time = nn.Sequential(
            nn.Linear(WIDTH, dim, device=device, dtype=dtype),
            nn.SiLU(),
            nn.Linear(dim, dim, device=device, dtype=dtype),
        )
        self.classes = (
            nn.Embedding(num_classes + 1, dim, device=device, dtype=dtype) if num_classes else None
        )

    def reset_parameters(self) -> None:
        """Normals of 0.02, as in DiT, and no biases."""
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    def forward(
        self, t: Float[Tensor, " batch"], y: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch dim"]:
        """The embedding.

        Args:
            t: in units of steps.
            y: classes, `num_classes` for none; None for none at all.
        """
        first = self.time[0].weight
        assert isinstance(first, Tensor)
        embedded = self.time(sinusoid(t, frequency_shift=self.frequency_shift).to(first.dtype))
        if self.classes is None:
            return embedded
        rows = self.classes.weight[self.num_classes] if y is None else self.classes(y)
        return embedded + rows
