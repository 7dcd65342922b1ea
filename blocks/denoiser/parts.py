"""The parts of a `DiffusionTransformer`, made from its options."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.denoiser.block import Block
from ropewalk.blocks.denoiser.conditioning import Conditioning
from ropewalk.blocks.denoiser.feed_forward import default_width, feed_forward
from ropewalk.blocks.denoiser.mixers import AttentionMixer, RecurrentMixer
from ropewalk.blocks.denoiser.modulation import (
    VECTORS,
    FullModulation,
    LowRankModulation,
    SharedModulation,
    default_rank,
)
from ropewalk.blocks.denoiser.options import NAME
from ropewalk.blocks.denoiser.patches import Size
from ropewalk.blocks.heads import TiedEmbedding
from ropewalk.blocks.rotary import AxialRotary, FrequencyRule

if TYPE_CHECKING:
    from ropewalk.blocks.denoiser.model import DiffusionTransformer


def check_sizes(
    channels: int | None, dim: int, heads: int, patch_size: Size, options: dict[str, Any]
) -> None:
    """Refuses sizes that do not go together.

    Raises:
        ValueError: which, and what to change.
    """
    axes = len(patch_size)
    if dim % heads:
        raise ValueError(f"{NAME}: expected heads that divide dim, got dim {dim} and heads {heads}")
    if "recurrent" in options["mixer"] and dim % 2:
        raise ValueError(f"{NAME}.dim: expected an even width for two recurrences, got {dim}")
    if options["rotary"] == "axial" and (dim // heads) % 2 == 1:
        raise ValueError(
            f"{NAME}: expected an even dim / heads to rotate in pairs, got {dim // heads}"
        )
    if options["rotary"] == "axial" and dim // heads < 2 * axes:
        raise ValueError(
            f"{NAME}: expected dim / heads of at least {2 * axes}, a pair for each axis, got "
            f"{dim // heads}"
        )
    if options["rotary"] == "absolute" and dim < 2 * axes:
        raise ValueError(
            f"{NAME}.dim: expected at least {2 * axes}, a pair for each axis, got {dim}"
        )
    if options["vocabulary"] is None:
        if channels is None:
            raise ValueError(
                f"{NAME}.channels: expected a number, or a vocabulary for discrete tokens, got None"
            )
        require_integer(NAME, 1, channels=channels)
    elif channels is not None or math.prod(patch_size) != 1:
        raise ValueError(
            f"{NAME}: expected channels=None and patch_size=1 beside a vocabulary, a token for "
            f"each place, got channels {channels} and patch {patch_size}"
        )


def output_channels(channels: int | None, options: dict[str, Any]) -> int | None:
    """Channels of the output; None of a vocabulary."""
    if channels is None:
        return None
    if options["out_channels"] is not None:
        return options["out_channels"]
    return 2 * channels if options["learn_sigma"] else channels


class Builder:
    """Makes the parts.

    Args:
        dim: width.
        depth: number of blocks.
        heads: of attention.
        axes: of the grid.
        options: complete ones.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, axes: int, options: dict[str, Any]
    ) -> None:
        self.dim, self.depth, self.heads, self.axes = dim, depth, heads, axes
        self.options = options
        self.placement = {"device": options["device"], "dtype": options["dtype"]}

    def embedding(self, channels: int | None, patch_size: Size) -> nn.Module:
        """Of patches, or of tokens and the mask."""
        if channels is not None:
            return nn.Linear(channels * math.prod(patch_size), self.dim, **self.placement)
        tokens = self.options["vocabulary"] + 1
        # The table is drawn for the logits; the stream wants entries of size one.
        unit = self.dim / math.log(tokens)
        return TiedEmbedding(tokens, self.dim, input_scale=unit, **self.placement)

    def registers(self) -> nn.Parameter | None:
        """Learned tokens."""
        count = self.options["registers"]
        if not count:
            return None
        return nn.Parameter(torch.empty(count, self.dim, **self.placement))

    def conditioning(self) -> nn.ModuleList:
        """One embedding of the condition, or one for each block."""
        count = self.depth if self.options["embed_condition_per_block"] else 1
        shift = self.options["time_frequency_shift"]
        classes = self.options["num_classes"]
        return nn.ModuleList(
            Conditioning(self.dim, classes, frequency_shift=shift, **self.placement)
            for _ in range(count)
        )

    def shared_modulation(self) -> nn.Module | None:
        """Vectors that all blocks share."""
        if self.options["adaln"] != "shared":
            return None
        return FullModulation(self.dim, **self.placement)

    def final_modulation(self) -> nn.Module:
        """Shift and scale of the last norm."""
        return FullModulation(self.dim, 2, **self.placement)

    def modulation(self) -> nn.Module:
        """Of a block."""
        if self.options["adaln"] == "shared":
            return SharedModulation(self.dim, **self.placement)
        if self.options["adaln"] == "low_rank":
            rank = self.options["adaln_rank"] or default_rank(self.dim)
            return LowRankModulation(self.dim, rank, **self.placement)
        return FullModulation(self.dim, VECTORS, **self.placement)

    def blocks(self) -> nn.ModuleList:
        """The blocks; recurrent ones take turns in the axes, the last one first."""
        options = self.options
        kind = options["feed_forward"]
        width = options["feed_forward_width"] or default_width(kind, self.dim)
        blocks, recurrent = nn.ModuleList(), 0
        for name in options["mixer"]:
            if name == "attention":
                mixer = AttentionMixer(
                    self.dim,
                    self.heads,
                    qk_norm=options["qk_norm"],
                    norm_eps=options["norm_eps"][0],
                    bias=options["bias"],
                    **self.placement,
                )
            else:
                axis = self.axes - 1 - recurrent % self.axes
                mixer = RecurrentMixer(self.dim, options["recurrence"], axis, **self.placement)
                recurrent += 1
            blocks.append(
                Block(
                    mixer,
                    feed_forward(kind, self.dim, width, options["nblocks"], **self.placement),
                    self.modulation(),
                    norm=options["norm"],
                    eps=options["norm_eps"],
                )
            )
        return blocks

    def rotary(self, frequency: Sequence[FrequencyRule] | None) -> AxialRotary | None:
        """RoPE on the axes, with a frequency rule for each."""
        if self.options["rotary"] != "axial" or "attention" not in self.options["mixer"]:
            return None
        pairs = self.dim // self.heads // 2
        # What the axes cannot share equally goes to the last ones.
        sections = [(pairs + axis) // self.axes for axis in range(self.axes)]
        return AxialRotary(
            self.dim // self.heads,
            self.axes,
            base=self.options["rotary_base"],
            frequency=frequency,
            sections=sections,
        )

    def head(self, out_channels: int | None, patch_size: Size) -> nn.Module | None:
        """Of patches; tokens are predicted by their embedding."""
        if out_channels is None:
            return None
        return nn.Linear(self.dim, out_channels * math.prod(patch_size), **self.placement)


@torch.no_grad()
def reset_parameters(model: "DiffusionTransformer") -> None:
    """DiT's initialisation (arXiv 2212.09748, appendix A)."""
    for module in model.modules():
        if module is model:
            continue
        if type(module) is nn.Linear:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters") and not isinstance(module, Conditioning):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
    for conditioning in model.conditioning:
        assert isinstance(conditioning, Conditioning)
        conditioning.reset_parameters()
    for module in model.modules():
        if isinstance(module, LowRankModulation):
            module.reset_parameters()
    if model.registers is not None:
        nn.init.normal_(model.registers, std=0.02)
    if model.head is not None:
        assert isinstance(model.head, nn.Linear)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
