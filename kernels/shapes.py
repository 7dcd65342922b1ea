"""The shape vocabulary of the whole library, in one place.

Every tensor in a signature is annotated with names from this list, so that the same letter never
means two things in two files. Each `kernels/<op>` and every layer above uses them.

    batch       sequences that are computed together
    heads       query heads
    kv_heads    key and value heads; a divisor of `heads` under grouped-query attention
    query       number of queries (positions that attend)
    key         number of keys and values (positions that are attended to)
    seq         number of positions where queries and keys are the same tokens
    head_dim    width of one head
    value_dim   width of one value head, where it differs from `head_dim`
    rotary_dim  leading dimensions of a head that are rotated; even
    pairs       rotary_dim / 2, the number of planes that are rotated, one frequency each
    axes        coordinates of a position in n-D: (time, row, column) of a video
    dim         width of the residual stream
    hidden      width between the two products of a feed-forward
    vocabulary  number of tokens that can be predicted
    columns     a slice of the vocabulary: what one rank, or one tile, holds of it

The aliases below are for the shapes that recur; write other shapes out with the same names.
"""

from typing import Literal

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Queries = Float[Tensor, "batch heads query head_dim"]
Keys = Float[Tensor, "batch kv_heads key head_dim"]
Values = Float[Tensor, "batch kv_heads key value_dim"]
Attended = Float[Tensor, "batch heads query value_dim"]
LogSumExp = Float[Tensor, "batch heads query"]

Positions = Num[Tensor, "*batch seq"]
"""Integer, or float32/float64: half precision cannot hold integers above 256 or 2048."""
Coordinates = Num[Tensor, "*batch seq axes"]
InverseFrequencies = Float[Tensor, " pairs"]
"""Float32, radians per position, highest frequency first."""
CosSin = tuple[Float[Tensor, "*batch seq pairs"], Float[Tensor, "*batch seq pairs"]]
"""Float32 cosines and sines of position × frequency, times the rule's attention factor."""

Lengths = Int[Tensor, " batch"]
AttentionMask = (
    Bool[Tensor, "#batch #heads #query #key"] | Float[Tensor, "#batch #heads #query #key"]
)

Layout = Literal["half", "interleaved"]
"""Which dimensions of a head are paired: i with i + rotary_dim/2, or 2i with 2i + 1."""
