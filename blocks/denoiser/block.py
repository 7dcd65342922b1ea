"""One block, written so that the end of one half and the beginning of the next are one pass.

    x ← x + gate · branch,   h = norm(x) · (1 + scale) + shift

(`ropewalk.kernels.adaptive_norm`). The branch of a block's feed-forward is therefore not added by
the block: it is handed on, with its gate, to whoever norms next, the next block or the last layer.
"""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.denoiser.mixers import Places
from ropewalk.blocks.denoiser.remaking import remade
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


class Norm(NamedTuple):
    """A modulated norm without weights of its own.

    Attributes:
        kind: "layer" or "rms".
        eps: its epsilon.
        cu_seqlens: boundaries of packed arrays.
    """

    kind: NormKind
    eps: float
    cu_seqlens: Tensor | None

    def __call__(
        self,
        x: Float[Tensor, "batch tokens dim"],
        shift: Float[Tensor, "batch dim"],
        scale: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """The norm of x, modulated."""
        return adaptive_norm(
            x, shift, scale, norm=self.kind, eps=self.eps, cu_seqlens=self.cu_seqlens
        )

    def added(
        self, stream: Stream, shift: Float[Tensor, "batch dim"], scale: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"]]:
        """The stream with everything added to it, and its modulated norm, in one pass."""
        if stream.branch is None:
            return stream.x, self(stream.x, shift, scale)
        return gated_adaptive_norm(
            stream.x,
            stream.branch,
            stream.gate,
            shift,
            scale,
            norm=self.kind,
            eps=self.eps,
            cu_seqlens=self.cu_seqlens,
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
        before, between = (Norm(self.norm, eps, places.cu_seqlens) for eps in self.eps)
        x, h = before.added(stream, shift_mixer, scale_mixer)
        with remade(h, before, x, shift_mixer, scale_mixer):
            branch = self.mixer(h, places)
        x, h = between.added(Stream(x, branch, gate_mixer), shift, scale)
        with remade(h, between, x, shift, scale):
            branch = self.feed_forward(h)
        return Stream(x, branch, gate)

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}"
