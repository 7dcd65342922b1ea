"""A rotary module that rotates nothing: cos = 1, sin = 0.

    q · cos + rotate_half(q) · sin = q   for cos = 1, sin = 0

Wrapped so, a model hands its attention, and its cache, queries and keys that are **not rotated**,
with no file of it patched and whatever its layout (half, interleaved, partial, with a complex
exponential). Distance rules need that: a far key takes another rotation than a near one, and a
length-dependent frequency rule would leave rotated keys stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ropewalk.llm.attention_interface import NAME


@dataclass(frozen=True)
class RotaryFormat:
    """What a rotary module returns.

    Attributes:
        width: size of the last dimension.
        complex: whether it returns one complex tensor and not cos and sin.
    """

    width: int
    complex: bool = False


class UnitRotary(nn.Module):
    """Stands in for a model's rotary module and returns rotations by zero.

    Args:
        native: the module it stands in for; kept as a submodule, so that it follows `.to(...)`.
        formats: of each layer type that the module is called with (None without layer types).
        config: of the model's text decoder; says which attention function its layers call.
    """

    def __init__(
        self,
        native: nn.Module,
        formats: Mapping[str | None, RotaryFormat],
        config: PreTrainedConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.native = native
        self.formats = dict(formats)

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Ones and zeros where the native module returns cosines and sines.

        Args:
            x: anything of the model's dtype, on its device.
            position_ids: (batch, seq); only its shape matters here.
            layer_type: which of several rotations, in models that have several.

        Raises:
            ValueError: the layers would call another attention function than ours, which would not
                rotate at all.
        """
        if self.config._attn_implementation != NAME:
            raise ValueError(
                f"expected attention {NAME!r} while the model is plugged, got "
                f"{self.config._attn_implementation!r}, which would run it without positions; "
                "unplug first, then change the attention implementation"
            )
        form = self.formats[layer_type]
        shape = (*position_ids.shape, form.width)
        ones = torch.ones(shape, dtype=x.dtype, device=x.device)
        if form.complex:
            real = torch.ones(shape, dtype=torch.float32, device=x.device)
            return torch.complex(real, torch.zeros_like(real))
        return ones, torch.zeros_like(ones)
