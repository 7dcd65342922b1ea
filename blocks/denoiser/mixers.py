"""What lets the tokens of a denoiser see each other.

attention   all to all, with n-dimensional RoPE and an RMSNorm of queries and keys if wanted,
            norm and rotation in one launch (`ropewalk.kernels.rotary`)
recurrent   two recurrences of half the width, one from the first token to the last and one
            back; blocks take turns in the axis that they follow. O(tokens), and no positions
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.denoiser.layout import TokenLayout
from ropewalk.blocks.recurrent import DiagonalGRUCell, MinGRU
from ropewalk.blocks.recurrent.solvers.kernel import scanned
from ropewalk.blocks.rotary import AxialRotary
from ropewalk.kernels.rotary import rotate_query_key
from ropewalk.kernels.rotary_attention import rotary_attention

MixerKind = Literal["attention", "recurrent"]
Recurrence = Literal["gru", "min_gru"]
RECURRENCES: tuple[Recurrence, ...] = ("gru", "min_gru")


class Places(NamedTuple):
    """What mixers need to know of where tokens are.

    Attributes:
        cos: of the rotation, (tokens, pairs); None without one.
        sin: of its shape.
        cu_seqlens: boundaries of packed arrays.
        order: of (axis, reverse), the order in which a recurrence reads; None as they lie.
    """

    cos: Float[Tensor, "tokens pairs"] | None
    sin: Float[Tensor, "tokens pairs"] | None
    cu_seqlens: Int[Tensor, " boundaries"] | None
    order: Callable[[int, bool], Tensor | None]


def places_of(
    layout: TokenLayout, coordinates: Int[Tensor, "tokens axes"], rotary: AxialRotary | None
) -> Places:
    """The places of a layout's tokens; orders are made when they are first asked for."""
    cos, sin = (None, None) if rotary is None else rotary(coordinates)
    orders: dict[tuple[int, bool], Tensor | None] = {}

    def order(axis: int, reverse: bool) -> Tensor | None:
        if (axis, reverse) not in orders:
            found = layout.scan_order(axis, coordinates.device, reverse=reverse)
            orders[axis, reverse] = found
        return orders[axis, reverse]

    return Places(cos, sin, layout.cu_seqlens, order)


class AttentionMixer(nn.Module):
    """Attention of all tokens to all.

    Args:
        dim: width.
        heads: a divisor of it.
        qk_norm: RMSNorm with learned weights over each head's query and key (arXiv 2302.05442 §2).
        norm_eps: the norms' epsilon.
        bias: of the projections.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool,
        norm_eps: float,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.norm_eps = heads, norm_eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias, device=device, dtype=dtype)
        self.output = nn.Linear(dim, dim, device=device, dtype=dtype)
        for name in ("query_norm", "key_norm"):
            weight = torch.ones(dim // heads, device=device, dtype=dtype) if qk_norm else None
            self.register_parameter(name, None if weight is None else nn.Parameter(weight))

    query_norm: nn.Parameter | None
    key_norm: nn.Parameter | None

    def reset_parameters(self) -> None:
        """Norms that change nothing; the projections have their own."""
        for weight in (self.query_norm, self.key_norm):
            if weight is not None:
                nn.init.ones_(weight)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], places: Places
    ) -> Float[Tensor, "batch tokens dim"]:
        """The update of the residual stream."""
        batch, tokens, dim = x.shape
        heads = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if places.cos is not None and places.sin is not None:
            query, key = rotate_query_key(
                query,
                key,
                places.cos,
                places.sin,
                query_norm_weight=self.query_norm,
                key_norm_weight=self.key_norm,
                norm_eps=self.norm_eps,
            )
        elif self.query_norm is not None and self.key_norm is not None:
            width = (query.shape[-1],)
            # Autocast makes queries and keys narrow, and leaves the weights as they are.
            query_norm, key_norm = self.query_norm.to(query.dtype), self.key_norm.to(key.dtype)
            query = functional.rms_norm(query, width, query_norm, self.norm_eps)
            key = functional.rms_norm(key, width, key_norm, self.norm_eps)
        if places.cu_seqlens is None:
            y = functional.scaled_dot_product_attention(query, key, value)
        else:
            y = rotary_attention(
                query, key, value, rotary=None, causal=False, cu_seqlens_query=places.cu_seqlens
            )
            assert isinstance(y, Tensor)
        return self.output(y.transpose(1, 2).reshape(batch, tokens, dim))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, qk_norm={self.query_norm is not None}"


class RecurrentMixer(nn.Module):
    """Two recurrences, forwards and back.

    Args:
        dim: width, even.
        kind: "gru", a GRU whose state acts on itself through a diagonal, solved for all steps at
            once (`ropewalk.blocks.recurrent`); or "min_gru" (arXiv 2410.01201), linear in its
            state.
        axis: the axis of the grid along which neighbours follow each other.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        kind: Recurrence,
        axis: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.axis = axis
        make = DiagonalGRUCell if kind == "gru" else MinGRU
        self.forwards = make(dim, dim // 2, device=device, dtype=dtype)
        self.backwards = make(dim, dim // 2, device=device, dtype=dtype)
        self.output = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], places: Places
    ) -> Float[Tensor, "batch tokens dim"]:
        """The update of the residual stream."""
        directions = []
        for cell, reverse in ((self.forwards, False), (self.backwards, True)):
            order = places.order(self.axis, reverse)
            states = _states(cell, x if order is None else x[:, order], places.cu_seqlens)
            if order is not None:
                # As argsort, without sorting: the inverse of a permutation.
                back = torch.empty_like(order)
                back[order] = torch.arange(len(order), device=order.device)
                states = states[:, back]
            directions.append(states)
        return self.output(torch.cat(directions, dim=-1))

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


def _states(
    cell: nn.Module, x: Float[Tensor, "batch tokens dim"], cu_seqlens: Tensor | None
) -> Float[Tensor, "batch tokens hidden"]:
    if isinstance(cell, MinGRU):
        return cell(x, cu_seqlens=cu_seqlens)[0]
    assert isinstance(cell, DiagonalGRUCell)
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    drive = cell.project(x)
    initial = drive.new_zeros(sequences, cell.hidden_size)
    options = {"algorithm": "auto", "window": None, "backend": "auto"}
    return cell.output(scanned(cell, drive, initial, cu_seqlens=cu_seqlens, **options).states)
