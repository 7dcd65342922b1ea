"""One block, written so that the end of one half and the beginning of the next are one pass.

    x ← x + gate · branch,   h = norm(x) · (1 + scale) + shift

(`ropewalk.kernels.adaptive_norm`). The branch of a block's feed-forward is therefore not added by
the block: it is handed on, with its gate, to whoever norms next, the next block or the last layer.
"""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.denoiser.mixers import Places
from ropewalk.kernels.adaptive_norm import adaptive_norm, gated_adaptive_norm

NormKind = Literal["layer", "rms"]
NORMS: tuple[NormKind, ...] = ("layer", "rms")


class Stream(NamedTuple):
    """The residual stream and what is still to be added to it.

    Attributes:
        x: (batch, tokens, dim).
        branch: of its shape, or None at the beginning.
        gate: (batch, dim), the factor on the branch.
    """

    x: Float[Tensor, "batch tokens dim"]
    branch: Float[Tensor, "batch tokens dim"] | None
    gate: Float[Tensor, "batch dim"] | None


def add_and_norm(
    stream: Stream,
    shift: Float[Tensor, "batch dim"],
    scale: Float[Tensor, "batch dim"],
    *,
    norm: NormKind,
    eps: float,
    cu_seqlens: Tensor | None,
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
    """The stream with everything added, and its modulated norm."""
    if stream.branch is None:
        h = adaptive_norm(stream.x, shift, scale, norm=norm, eps=eps, cu_seqlens=cu_seqlens)
        return stream.x, h
    return gated_adaptive_norm(
        stream.x,
        stream.branch,
        stream.gate,
        shift,
        scale,
        norm=norm,
        eps=eps,
        cu_seqlens=cu_seqlens,
    )


class Block(nn.Module):
    """A mixer and a feed-forward, each modulated.

    Args:
        mixer: called with (x, places).
        feed_forward: called with x.
        modulation: of the condition, 6·dim vectors.
        norm: "layer" or "rms", both without weights.
        eps: the epsilon of the norm before the mixer, and of that before the feed-forward.
    """

    def __init__(
        self,
        mixer: nn.Module,
        feed_forward: nn.Module,
        modulation: nn.Module,
        *,
        norm: NormKind,
        eps: tuple[float, float],
    ) -> None:
        super().__init__()
        self.mixer, self.feed_forward, self.modulation = mixer, feed_forward, modulation
        self.norm: NormKind = norm
        self.eps = eps

    def forward(
        self, stream: Stream, condition: Float[Tensor, "batch features"], places: Places
    ) -> Stream:
        """The stream after the block, its last branch not yet added."""
        vectors = self.modulation(condition).chunk(6, dim=-1)
        shift_mixer, scale_mixer, gate_mixer, shift, scale, gate = vectors
        packed = places.cu_seqlens
        x, h = add_and_norm(
            stream, shift_mixer, scale_mixer, norm=self.norm, eps=self.eps[0], cu_seqlens=packed
        )
        x, h = add_and_norm(
            Stream(x, self.mixer(h, places), gate_mixer),
            shift,
            scale,
            norm=self.norm,
            eps=self.eps[1],
            cu_seqlens=packed,
        )
        return Stream(x, self.feed_forward(h), gate)

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"
