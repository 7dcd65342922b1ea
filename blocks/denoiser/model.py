"""`DiffusionTransformer`: patches, a condition, blocks, patches.

    tokens = patches W + b (+ absolute positions), behind registers
    for each block:  tokens += gate · mixer(modulated norm);  tokens += gate · feed-forward(…)
    output = (modulated norm) W + b, put together as an array

The model of Peebles and Xie (arXiv 2212.09748) with what came after it: n-dimensional RoPE
(kexue.fm/archives/8397), SwiGLU, RMSNorm (arXiv 2501.01423), registers (arXiv 2309.16588), cheaper
modulations, recurrent mixers and Monarch feed-forwards. It reads arrays of any number of axes and
any size that the patch divides, several sizes at once without padding, or discrete tokens.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self, Unpack

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.denoiser import parts
from ropewalk.blocks.denoiser.block import Norm, Stream
from ropewalk.blocks.denoiser.inputs import (
    check_arrays,
    check_classes,
    check_dtype,
    check_times,
    steps_of,
)
from ropewalk.blocks.denoiser.layout import TokenLayout
from ropewalk.blocks.denoiser.mixers import places_of
from ropewalk.blocks.denoiser.options import NAME, Options, completed
from ropewalk.blocks.denoiser.patches import axes_of, grid_of, patchify, unpatchify
from ropewalk.blocks.denoiser.positions import absolute_positions, pairs_of_axis
from ropewalk.blocks.denoiser.resolution import AxisRule, axis_rules
from ropewalk.blocks.heads import TiedEmbedding
from ropewalk.blocks.rotary import FrequencyRule


class DiffusionTransformer(nn.Module):
    """A denoiser of images, sequences, video or tokens.

    Example:
        >>> model = DiffusionTransformer(8, 2, 1, 64, 4, 4, num_classes=10, qk_norm=True)
        >>> model(torch.randn(3, 1, 8, 8), torch.rand(3), torch.tensor([0, 1, 9])).shape
        torch.Size([3, 1, 8, 8])
        >>> large = model.at_size(16)     # the same weights, twice the size

    Attributes:
        null_condition: the class that stands for none; None for a model without classes.
        input_size: the trained size along each axis.
        patch_size: elements of a patch along each axis.

    Args:
        input_size: trained size: (height, width), (length,), (frames, height, width); a number
            stands for a square. Other sizes that the patch divides are read as they come.
        patch_size: of each axis, or one number for all.
        channels: of the input; None beside a `vocabulary`.
        dim: width of the model.
        depth: number of blocks.
        heads: of attention, a divisor of dim.
        mixer: "attention", "recurrent", "hybrid" (recurrent and attention in turns), or a name for
            each block.
        feed_forward: "swiglu", "gelu" (tanh's form, as DiT), "gelu_exact" or "monarch".
        feed_forward_width: hidden units; 8/3 · dim, of gelu 4 · dim if None.
        nblocks: of Monarch matrices.
        recurrence: of recurrent mixers, "gru" or "min_gru".
        rotary: "axial", RoPE on each axis; "absolute", sines and cosines added once; or "none".
        rotary_base: of RoPE's frequencies; 100 suits small grids.
        qk_norm: RMSNorm with learned weights of queries and keys.
        norm: "layer" or "rms", both without weights, before each half of a block.
        norm_eps: its epsilon; two numbers for mixers and feed-forwards apart.
        adaln: "full", "shared" or "low_rank": see `ropewalk.blocks.denoiser.modulation`.
        adaln_rank: of "low_rank"; dim / 16 if None.
        num_classes: 0 for none. Class `num_classes` stands for "no class".
        learn_sigma: twice the output channels; the second half is for a learned variance.
        registers: learned tokens that belong to no place.
        vocabulary: for discrete tokens (batch, *size), embedded and predicted by one
            `TiedEmbedding`; one token more than these is accepted, the mask.
        out_channels: as channels if None.
        bias: of the projections of queries, keys and values.
        time_steps: of a model that was trained on whole steps 0 … n − 1: step k is at time
            (k + 1)/n. None for a continuous time, which is multiplied by 1000.
        time_frequency_shift: see `ropewalk.blocks.denoiser.conditioning.sinusoid`.
        embed_condition_per_block: each block embeds time and class for itself, as in diffusers'
            `DiTTransformer2DModel`; else one embedding serves all.
        device: of the parameters; "meta" for none yet.
        dtype: of the parameters.

    Raises:
        ValueError: sizes that do not divide, a value out of its range.
        TypeError: an argument of the wrong kind, or one that does not exist.
    """

    registers: nn.Parameter | None

    def __init__(
        self,
        input_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        channels: int | None,
        dim: int,
        depth: int,
        heads: int,
        **given: Unpack[Options],
    ) -> None:
        super().__init__()
        require_integer(NAME, 1, dim=dim, depth=depth, heads=heads)
        options = completed(dict(given), depth)
        self.input_size = axes_of(input_size, f"{NAME}.input_size")
        self.patch_size = axes_of(patch_size, f"{NAME}.patch_size", len(self.input_size))
        grid_of(self.input_size, self.patch_size, f"{NAME}.input_size")
        parts.check_sizes(channels, dim, heads, self.patch_size, options)
        require_positive(NAME, rotary_base=options["rotary_base"])
        self.channels, self.dim, self.depth, self.heads = channels, dim, depth, heads
        self.options = options
        self.vocabulary: int | None = options["vocabulary"]
        self.num_classes: int = options["num_classes"]
        self.out_channels = parts.output_channels(channels, options)
        self.frequency: tuple[FrequencyRule, ...] | None = None
        build = parts.Builder(dim, depth, heads, len(self.input_size), options)
        self.embedding = build.embedding(channels, self.patch_size)
        self.registers = build.registers()
        self.conditioning = build.conditioning()
        self.shared_modulation = build.shared_modulation()
        self.blocks = build.blocks()
        self.rotary = build.rotary(None)
        self.final_modulation = build.final_modulation()
        self.head = build.head(self.out_channels, self.patch_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter as DiT does: blocks are identities and the output is zero."""
        parts.reset_parameters(self)

    @property
    def null_condition(self) -> int | None:
        """The class that stands for none."""
        return self.num_classes or None

    def check_condition(self, condition: Tensor | None, batch: int) -> None:
        """Refuses classes that a call with them would refuse, or on a device stumble over.

        `sample` asks once before its first step; a forward on a device does not wait for values.

        Raises:
            ValueError: classes for a model without, another number of them, or out of their range.
            TypeError: not a tensor of integers.
        """
        device = condition.device if isinstance(condition, Tensor) else torch.device("cpu")
        check_classes(condition, batch, self.num_classes, device, wait=True)

    def forward(
        self,
        x: Shaped[Tensor, "batch ..."] | Sequence[Shaped[Tensor, "..."]],
        t: Float[Tensor, " batch"] | float,
        y: Int[Tensor, " batch"] | None = None,
    ) -> Tensor | list[Tensor]:
        """The prediction, in whatever parametrisation the model was trained.

        Args:
            x: (batch, channels, *size); of a model with a vocabulary int64 (batch, *size). Or a
                list of arrays of several sizes, without the batch axis.
            t: times in [0, 1], 0 is data; (batch,), or one number for all, a float or a tensor.
            y: classes, int64 (batch,); None for none.

        Returns:
            (batch, out_channels, *size), of a vocabulary logits (batch, *size, vocabulary); a list
            for a list.

        Raises:
            ValueError: shapes or dtypes that do not fit, sizes that the patch does not divide,
                times or classes out of their range.
            TypeError: no tensors, or another dtype.
        """
        packed = isinstance(x, Sequence)
        arrays: list[Tensor] = list(x) if packed else [x]
        sizes = check_arrays(arrays, self.channels, self.vocabulary, self.patch_size, packed=packed)
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        check_dtype(arrays, weight)
        device = arrays[0].device
        batch = len(arrays) if packed else arrays[0].shape[0]
        t = check_times(t, batch, device)
        y = check_classes(y, batch, self.num_classes, device)
        grids = [grid_of(size, self.patch_size) for size in sizes]
        count = 0 if self.registers is None else len(self.registers)
        layout = TokenLayout.of(grids, count, packed=packed, device=device)
        coordinates = layout.coordinates(device)
        tokens = self._tokens(arrays, layout, coordinates)
        places = places_of(layout, coordinates, self.rotary)
        conditions = self._conditions(t, y)
        stream = Stream(tokens, None, None)
        for block, condition in zip(self.blocks, conditions, strict=True):
            if self.shared_modulation is not None:
                condition = self.shared_modulation(condition)
            stream = block(stream, condition, places)
        shift, scale = self.final_modulation(conditions[0]).chunk(2, dim=-1)
        last = Norm(self.options["norm"], self.options["norm_eps"][0], layout.cu_seqlens)
        _, h = last.added(stream, shift, scale)
        outputs = self._outputs(h, grids, count)
        return [own[0] for own in outputs] if packed else outputs[0]

    def _tokens(self, arrays: list[Tensor], layout: TokenLayout, coordinates: Tensor) -> Tensor:
        """Embedded patches behind their registers, packed ones in one row."""
        rows = []
        for x in arrays:
            batch = x if layout.cu_seqlens is None else x[None]
            whole = self.vocabulary is not None
            embedded = self.embedding(
                batch.flatten(1) if whole else patchify(batch, self.patch_size)
            )
            if self.registers is not None:
                first = self.registers.to(embedded.dtype).expand(embedded.shape[0], -1, -1)
                embedded = torch.cat([first, embedded], dim=1)
            rows.append(embedded)
        tokens = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        if self.options["rotary"] != "absolute":
            return tokens
        table = absolute_positions(coordinates, self.dim, frequency=self.frequency)
        if layout.registers:
            table = table * layout.in_place(coordinates.device)[:, None]
        return tokens + table.to(tokens.dtype)

    def _conditions(self, t: Tensor, y: Tensor | None) -> list[Tensor]:
        """What modulates each block."""
        steps = steps_of(t, self.options["time_steps"])
        embedded = [functional.silu(embed(steps, y)) for embed in self.conditioning]
        return embedded if len(embedded) > 1 else embedded * self.depth

    def _outputs(self, h: Tensor, grids: list[tuple[int, ...]], registers: int) -> list[Tensor]:
        outputs, start = [], 0
        for grid in grids:
            end = start + registers + torch.Size(grid).numel()
            own = h[:, start + registers : end]
            start = end
            if self.vocabulary is not None:
                assert isinstance(self.embedding, TiedEmbedding)
                logits = self.embedding.logits(own)[..., : self.vocabulary]
                outputs.append(logits.unflatten(1, grid))
            else:
                assert self.head is not None
                outputs.append(unpatchify(self.head(own), grid, self.patch_size))
        return outputs

    def at_size(self, size: int | Sequence[int], *, rule: str | AxisRule = "linear") -> Self:
        """The same weights for arrays of another size: one with other frequencies on each axis.

        Args:
            size: the size that is to be read, (height, width) or a number for a square.
            rule: "linear", which reads a finer grid of the same picture as it was trained, and was
                the best where it was measured (`notebooks/denoiser_resolution.py`); "ntk", "yarn",
                "none"; or a function of (how much an axis grew, cells it was trained on) that gives
                a frequency rule.

        Returns:
            A model that shares every parameter with this one, which is left as it is.

        Raises:
            ValueError: a size that the patch does not divide, an unknown rule or one that needs
                more pairs of dimensions than an axis has, or a model without positions.
        """
        grid = grid_of(axes_of(size, "size", len(self.input_size)), self.patch_size, "size")
        trained = grid_of(self.input_size, self.patch_size)
        if self.rotary is None and self.options["rotary"] != "absolute":
            raise ValueError(
                "at_size: expected a model with positions, got rotary="
                f"{self.options['rotary']!r} and mixers {set(self.options['mixer'])}, which have "
                "no frequencies to change; it reads other sizes as it is"
            )
        pairs = [pairs_of_axis(self.dim, len(grid))] * len(grid)
        if self.rotary is not None:
            pairs = self.rotary.sections
        frequency = axis_rules(rule, grid, trained, pairs)
        other = copy.copy(self)
        # The same parameters and parts, in tables of its own.
        for table in ("_modules", "_parameters", "_buffers"):
            other.__dict__[table] = dict(self.__dict__[table])
        other.frequency = frequency
        build = parts.Builder(self.dim, self.depth, self.heads, len(grid), self.options)
        other.rotary = build.rotary(frequency)
        return other

    def extra_repr(self) -> str:
        said: dict[str, Any] = {
            name: self.options[name]
            for name in ("rotary", "adaln", "num_classes", "learn_sigma", "vocabulary")
            if self.options[name]
        }
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items())
        return f"{self.input_size}, patch={self.patch_size}, {shown}"
