"""`RotaryEmbedding`: positions to cosines and sines, under a frequency rule.

    φ = position · θ'_i,   (cos φ, sin φ) × attention factor

Computed in float32 from integer or float positions, whatever the dtype of the model: bfloat16 can
hold no integer above 256 that is odd, and a module cast to bfloat16 must not lose its frequencies.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer, require_number
from ropewalk.blocks.rotary.checks import require_base, require_rotary_dim
from ropewalk.blocks.rotary.frequency import Default, FrequencyRule
from ropewalk.kernels.rotary import LAYOUTS, Backend, Layout, rotate, rotate_query_key


def cosine_sine(
    positions: Num[Tensor, "*batch seq #pairs"],
    inverse_frequencies: Float[Tensor, " pairs"],
    attention_factor: float | Tensor = 1.0,
) -> tuple[Float[Tensor, "*batch seq pairs"], Float[Tensor, "*batch seq pairs"]]:
    """Cosines and sines of position × frequency, times the attention factor.

    Args:
        positions: integers, or float32/float64 where they are fractional; may be negative. The last
            dimension is 1 where all planes turn with the same position.
        inverse_frequencies: radians per position, one per pair of dimensions.
        attention_factor: factor on both results.

    Returns:
        cos and sin, float32 (float64 for float64 positions).

    Raises:
        TypeError: the positions are no tensor, or half-precision, complex or boolean.
    """
    _require_tensor(positions)
    if positions.dtype in (torch.bfloat16, torch.float16, torch.bool) or positions.is_complex():
        raise TypeError(
            f"positions: expected integers or float32/float64, got {positions.dtype}, which cannot "
            "hold large positions; build them with torch.arange(...) and leave them integer"
        )
    dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
    angles = positions.to(dtype) * inverse_frequencies.to(dtype)
    if isinstance(attention_factor, float) and attention_factor == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def _require_tensor(positions: object) -> None:
    if not isinstance(positions, Tensor):
        raise TypeError(
            f"positions: expected a tensor, got {type(positions).__name__}; build it with "
            "torch.arange(…) or torch.tensor(…)"
        )


def _require_position_per_token(positions: Tensor, x: Tensor) -> None:
    if x.ndim < 2 or positions.ndim < 1 or positions.shape[-1] != x.shape[-2]:
        raise ValueError(
            "positions: expected (seq,) or (batch, seq) for x (…, heads, seq, head_dim) of shape "
            f"{tuple(x.shape)}, got {tuple(positions.shape)}"
        )
    batch = tuple(x.shape[:-3])
    given = tuple(positions.shape[:-1])
    pairs = zip(given[::-1], batch[::-1], strict=False)
    if len(given) > len(batch) or any(n not in (1, size) for n, size in pairs):
        raise ValueError(
            f"positions: expected ({x.shape[-2]},) or a row of positions for each sequence, "
            f"{(*batch, x.shape[-2])}, got {tuple(positions.shape)}"
        )


class RotaryEmbedding(nn.Module):
    """Rotary position embedding of one head, with any frequency rule.

    It has no parameters and nothing in its state dict. Frequencies stay float32 under
    `.to(torch.bfloat16)` or `.half()` and come back after `to_empty` from the meta device.

    Example:
        >>> rotary = RotaryEmbedding(64, frequency=NTKAware(factor=4))
        >>> query = rotary.rotate(query, torch.arange(query.shape[-2]))

    Args:
        head_dim: width of a head.
        base: the model's base (`rope_theta`).
        frequency: the frequency rule.
        layout: which dimensions are pairs, `half` (Llama) or `interleaved` (GPT-J).
        rotary_fraction: the leading int(head_dim · rotary_fraction) dimensions are rotated.

    Raises:
        TypeError: `frequency` is not a frequency rule, or a number is none.
        ValueError: an odd rotary dimension, a fraction outside (0, 1], an unknown layout, or a
            base not above 1.
    """

    _frequencies: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        frequency: FrequencyRule | None = None,
        layout: Layout = "half",
        rotary_fraction: float = 1.0,
    ) -> None:
        super().__init__()
        frequency = Default() if frequency is None else frequency
        require_integer("RotaryEmbedding", 1, head_dim=head_dim)
        require_base(base)
        if not isinstance(frequency, FrequencyRule):
            raise TypeError(
                "RotaryEmbedding.frequency: expected a frequency rule such as "
                f"NTKAware(factor=4), got {frequency!r}"
            )
        if layout not in LAYOUTS:
            raise ValueError(
                f"RotaryEmbedding.layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}"
            )
        require_number("RotaryEmbedding", rotary_fraction=rotary_fraction)
        if not 0 < rotary_fraction <= 1:
            raise ValueError(
                f"RotaryEmbedding.rotary_fraction: expected 0 < fraction ≤ 1, got {rotary_fraction}"
            )
        self.head_dim = head_dim
        self.rotary_dim = int(head_dim * rotary_fraction)
        require_rotary_dim(self.rotary_dim)
        self.base = base
        self.frequency = frequency
        self.layout: Layout = layout
        frequencies = frequency.inverse_frequencies(self.rotary_dim, base)
        self.register_buffer("_frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        # Casts would round the frequencies and `to_empty` would leave garbage, so only the device
        # of what came out is taken.
        super()._apply(fn, recurse)
        if not self._frequencies.is_meta:
            frequencies = self.frequency.inverse_frequencies(self.rotary_dim, self.base)
            self._frequencies = frequencies.to(self._frequencies.device)
        return self

    def inverse_frequencies(self, length: int | Tensor | None = None) -> Float[Tensor, " pairs"]:
        """Float32 (rotary_dim / 2) on the module's device, highest frequency first.

        Args:
            length: tokens in the context, for rules that depend on it; None means no more than
                the trained length.
        """
        if length is None or not self.frequency.depends_on_length:
            if not self._frequencies.is_meta:
                return self._frequencies
            # Parameters were materialised one by one and this buffer was passed over.
            return self.frequency.inverse_frequencies(self.rotary_dim, self.base)
        frequencies = self.frequency.inverse_frequencies(self.rotary_dim, self.base, length)
        return frequencies if isinstance(length, Tensor) else frequencies.to(self._device())

    def attention_factor(self, length: int | Tensor | None = None) -> float:
        """Factor on cos and sin; the logits get its square."""
        return self.frequency.attention_factor(length)

    def forward(
        self, positions: Num[Tensor, "*batch seq"], *, length: int | Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch seq pairs"], Float[Tensor, "*batch seq pairs"]]:
        """Cosines and sines at the given positions.

        Args:
            positions: integers, or float32/float64 where they are fractional; may be negative.
            length: tokens in the context, for rules that depend on it; by default the largest
                position + 1.

        Returns:
            cos and sin on the device of the positions, float32 (float64 for float64 positions),
            times the attention factor.

        Raises:
            TypeError: the positions are no tensor, or half-precision.
        """
        _require_tensor(positions)
        if length is None and self.frequency.depends_on_length and positions.numel() > 0:
            length = positions.max() + 1
        frequencies = self.inverse_frequencies(length).to(positions.device)
        return cosine_sine(positions[..., None], frequencies, self.attention_factor(length))

    def rotate(
        self,
        x: Float[Tensor, "*batch heads seq head_dim"],
        positions: Num[Tensor, "*batch seq"],
        *,
        length: int | Tensor | None = None,
    ) -> Float[Tensor, "*batch heads seq head_dim"]:
        """Rotates queries or keys to their positions.

        Args:
            x: queries or keys.
            positions: (seq,) for all sequences alike, or (batch, seq).
            length: as in `forward`.

        Returns:
            The rotated tensor in the dtype of `x`; computed in float32 (float64 for float64 `x`).

        Raises:
            TypeError: the positions are no tensor, or half-precision.
            ValueError: there is not one position for every token.
        """
        _require_tensor(positions)
        _require_position_per_token(positions, x)
        cos, sin = self(positions, length=length)
        if positions.ndim > 1:
            cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
        return rotate(x, cos, sin, layout=self.layout)

    def rotate_query_key(
        self,
        query: Float[Tensor, "batch heads query head_dim"],
        key: Float[Tensor, "batch kv_heads key head_dim"],
        positions: Num[Tensor, "*batch query"],
        key_positions: Num[Tensor, "*batch key"] | None = None,
        *,
        length: int | Tensor | None = None,
        query_norm_weight: Float[Tensor, " head_dim"] | None = None,
        key_norm_weight: Float[Tensor, " head_dim"] | None = None,
        norm_eps: float = 1e-6,
        inplace: bool = False,
        backend: Backend = "auto",
    ) -> tuple[
        Float[Tensor, "batch heads query head_dim"], Float[Tensor, "batch kv_heads key head_dim"]
    ]:
        """Rotates queries and keys to their positions, in one launch on a GPU.

        Args:
            query: queries.
            key: keys, with any number of heads.
            positions: (query,) for all sequences alike, or (1 | batch, query).
            key_positions: those of the keys; by default the queries'.
            length: as in `forward`, by default by the larger of all positions.
            query_norm_weight: weights of an RMSNorm before the rotation; None for no norm.
            key_norm_weight: the same for the keys.
            norm_eps: epsilon of the norms.
            inplace: write over `query` and `key`.
            backend: which implementation; this and the rest as in
                `ropewalk.kernels.rotary.rotate_query_key`.

        Returns:
            The rotated queries and keys in their dtype.

        Raises:
            TypeError: the positions are no tensor, or half-precision.
            ValueError: there is not one position for every token, or the tensors do not fit.
        """
        _require_tensor(positions)
        _require_position_per_token(positions, query)
        key_tables = None
        if key_positions is not None:
            _require_tensor(key_positions)
            _require_position_per_token(key_positions, key)
            if length is None and self.frequency.depends_on_length:
                everywhere = [x.max() for x in (positions, key_positions) if x.numel() > 0]
                length = torch.stack(everywhere).max() + 1 if everywhere else None
            key_tables = self(key_positions, length=length)
        cos, sin = self(positions, length=length)
        return rotate_query_key(
            query,
            key,
            cos,
            sin,
            layout=self.layout,
            query_norm_weight=query_norm_weight,
            key_norm_weight=key_norm_weight,
            norm_eps=norm_eps,
            key_cos=None if key_tables is None else key_tables[0],
            key_sin=None if key_tables is None else key_tables[1],
            inplace=inplace,
            backend=backend,
        )

    def _device(self) -> torch.device:
        return torch.device("cpu") if self._frequencies.is_meta else self._frequencies.device

    def extra_repr(self) -> str:
        parts: dict[str, Any] = {"base": self.base, "frequency": self.frequency}
        if self.rotary_dim != self.head_dim:
            parts["rotary_dim"] = self.rotary_dim
        if self.layout != "half":
            parts["layout"] = self.layout
        return f"{self.head_dim}, " + ", ".join(f"{key}={value}" for key, value in parts.items())
