"""Distance rules: which relative position the score of a query and a key sees.

    plain         Δ = i − j
    rerope        Δ if Δ < w, else w                    kexue.fm/archives/9708
    leaky-rerope  Δ if Δ < w, else w + (Δ − w)/k        kexue.fm/archives/9708, inverse: 9728
    self-extend   Δ if Δ < W, else i//G + W − W//G − j//G     arXiv 2401.01325
    dual-chunk    with s = chunk − local:               arXiv 2402.17463
                  same block of s: Δ;  next block: min(i mod s + s, chunk) − j mod s;
                  further: chunk − j mod s

A rule is data: a list of branches, each with a position map for queries and one for keys, and the
edges between them (`ropewalk.kernels.rotary_attention.protocols`). The attention op chooses the
branch of a pair *before* the softmax, so that there is one softmax over all keys. Since a far key
is rotated differently from a near one, keys must be cached **unrotated**.

Identities: Leaky with k = 1 is plain and with k → ∞ is ReRoPE; every rule is plain as long as the
context fits its window. Pitfall: the window must lie well inside the trained length L (best between
L/4 and L/2); w = L collapses (next-token accuracy 7 % in Su's table).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.kernels.rotary_attention.protocols import Branch, PositionMap


@dataclass(frozen=True)
class DistanceRuleBase:
    """What distance rules share; subclasses are frozen dataclasses of their parameters.

    Attributes:
        name: the rule's name in `DISTANCE_RULES` and in variant strings.
        paper: where the rule comes from.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def branches(self) -> Sequence[Branch]:
        """Position maps of the rule, nearest branch first."""
        return (Branch(),)

    @property
    def edges(self) -> Sequence[int]:
        """Ascending thresholds on the block distance, between the branches."""
        return ()

    @property
    def unit(self) -> int:
        """Block size in which distance is measured."""
        return 1

    def relative_positions(self, query_length: int, key_length: int) -> Float[Tensor, "query key"]:
        """The matrix that the rule means, with the last query sitting at the last key.

        Args:
            query_length: number of queries; they are the last of the positions.
            key_length: number of keys, at positions 0 … key_length − 1.

        Returns:
            Float64 (query, key): the relative position that each score sees; NaN where the key
            lies after the query and there is no score.

        Raises:
            ValueError: a length is below 1, or there are more queries than keys.
        """
        require_integer("relative_positions", 1, query_length=query_length, key_length=key_length)
        if query_length > key_length:
            raise ValueError(
                f"query_length: expected at most key_length = {key_length} because the queries are "
                f"the last of the keys' positions, got {query_length}"
            )
        key = torch.arange(key_length, device="cpu")
        query = key[key_length - query_length :, None]
        block_distance = query // self.unit - key // self.unit
        result = torch.full_like(block_distance, math.nan, dtype=torch.float64)
        # Branch b begins at its edge; the nearest begins at the diagonal.
        for branch, edge in zip(self.branches, (None, *self.edges), strict=True):
            relative = branch.query(query, torch.float64) - branch.key(key, torch.float64)
            begins = query >= key if edge is None else block_distance >= edge
            result = torch.where(begins & (query >= key), relative, result)
        return result


@dataclass(frozen=True)
class Plain(DistanceRuleBase):
    """The true distance, as trained."""

    name: ClassVar[str] = "plain"
    paper: ClassVar[str] = "RoFormer, arXiv 2104.09864"


@dataclass(frozen=True)
class ReRoPE(DistanceRuleBase):
    """The true distance up to `window`, then `window` for ever.

    Attributes:
        window: w in tokens, best between a quarter and a half of the trained length.
    """

    window: int
    name: ClassVar[str] = "rerope"
    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/9708"

    def __post_init__(self) -> None:
        require_integer("ReRoPE", 1, window=self.window)

    @property
    def branches(self) -> Sequence[Branch]:
        nowhere = PositionMap(divisor=math.inf)
        return (Branch(), Branch(PositionMap(divisor=math.inf, offset=self.window), nowhere))

    @property
    def edges(self) -> Sequence[int]:
        return (self.window,)


@dataclass(frozen=True)
class LeakyReRoPE(DistanceRuleBase):
    """The true distance up to `window`, then growing by 1/factor a token.

    Attributes:
        window: w in tokens.
        factor: k; above 1 the far distance grows more slowly (extrapolating a trained model),
            below 1 faster (training, see `inverse`). Infinity gives ReRoPE.
    """

    window: int
    factor: float
    name: ClassVar[str] = "leaky-rerope"
    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/9708"

    def __post_init__(self) -> None:
        require_integer("LeakyReRoPE", 1, window=self.window)
        if self.factor != math.inf:
            require_positive("LeakyReRoPE", factor=self.factor)

    @classmethod
    def inverse(cls, expansion: float, train_length: int) -> "LeakyReRoPE":
        """The rule to *train* with so that plain RoPE reads expansion × train_length later.

        Inverse Leaky ReRoPE (kexue.fm/archives/9728): k = 1/(2·expansion), w = train_length/4.
        Training sees distances up to w + 3·train_length/4·2·expansion, so that inference needs no
        distance rule at all and runs at full speed.

        Args:
            expansion: s, longest length to be read / train_length; at least 1.
            train_length: tokens in a training sequence, at least 4.

        Raises:
            ValueError: `expansion` is below 1 or `train_length` below 4.
        """
        require_positive("LeakyReRoPE.inverse", expansion=expansion)
        require_integer("LeakyReRoPE.inverse", 4, train_length=train_length)
        if expansion < 1:
            raise ValueError(f"LeakyReRoPE.inverse.expansion: expected ≥ 1, got {expansion!r}")
        return cls(window=train_length // 4, factor=1 / (2 * expansion))

    @property
    def branches(self) -> Sequence[Branch]:
        offset = self.window - self.window / self.factor
        query = PositionMap(divisor=self.factor, offset=offset)
        return (Branch(), Branch(query, PositionMap(divisor=self.factor)))

    @property
    def edges(self) -> Sequence[int]:
        return (self.window,)


@dataclass(frozen=True)
class SelfExtend(DistanceRuleBase):
    """The true distance up to `window`, then positions in groups of `group`.

    Attributes:
        group: G, positions that share one.
        window: W in tokens. The reach is (L − W)·G + W for a model trained at L.
    """

    group: int
    window: int
    name: ClassVar[str] = "self-extend"
    paper: ClassVar[str] = "Self-Extend, arXiv 2401.01325"

    def __post_init__(self) -> None:
        require_integer("SelfExtend", 1, group=self.group, window=self.window)

    @property
    def branches(self) -> Sequence[Branch]:
        shift = self.window - self.window // self.group
        query = PositionMap(divisor=self.group, offset=shift, floor=True)
        return (Branch(), Branch(query, PositionMap(divisor=self.group, floor=True)))

    @property
    def edges(self) -> Sequence[int]:
        return (self.window,)


@dataclass(frozen=True)
class DualChunk(DistanceRuleBase):
    """Dual chunk attention: true distances within a block and just across its border.

    Attributes:
        chunk: the largest relative position that is ever seen; at most the trained length.
        local: distances up to this are true everywhere, across borders too; below `chunk`. Blocks
            are chunk − local tokens long, which should be more than `local`.
    """

    chunk: int
    local: int
    name: ClassVar[str] = "dual-chunk"
    paper: ClassVar[str] = "Dual chunk attention, arXiv 2402.17463"

    def __post_init__(self) -> None:
        require_integer("DualChunk", 1, chunk=self.chunk)
        require_integer("DualChunk", 0, local=self.local)
        if self.local >= self.chunk:
            raise ValueError(
                f"DualChunk.local: expected less than chunk = {self.chunk}, got {self.local}; "
                "blocks are chunk − local tokens long"
            )

    @property
    def branches(self) -> Sequence[Branch]:
        key = PositionMap(modulus=self.unit)
        return (
            Branch(PositionMap(modulus=self.unit), key),
            Branch(PositionMap(offset=self.unit, modulus=self.unit, maximum=self.chunk), key),
            Branch(PositionMap(divisor=math.inf, offset=self.chunk), key),
        )

    @property
    def edges(self) -> Sequence[int]:
        return (1, 2)

    @property
    def unit(self) -> int:
        return self.chunk - self.local


DISTANCE_RULES: dict[str, type[DistanceRuleBase]] = {
    rule.name: rule for rule in (Plain, ReRoPE, LeakyReRoPE, SelfExtend, DualChunk)
}
