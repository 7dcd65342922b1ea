"""Which tiles of the gradient may be left out: Cut Cross-Entropy's filter.

The gradient of a logit is p − [v = y] times the token's own factor. In a tile of tokens × columns
without a target, whose every p is below what its dtype can still add to a number of the size of 1,
the gradient is lost in rounding anyway, so that neither its logits nor its two products need to be
computed again (Wijmans et al., arXiv 2411.09009, §4.3, where the logits are computed first). The
decision needs the greatest logit of each tile and the logsumexp, which the forward pass has.

The sum of what is left out is not zero: a token loses at most vocabulary · resolution of its
probability. Fine-tuning does not notice; pretraining should keep `exact`, because tokens that are
rare receive nothing but such small gradients.
"""

import math

import torch
from torch import Tensor

from ropewalk.kernels.sizes import ceil_divide

FILTER_TOKENS = 128
FILTER_COLUMNS = 256


def log_resolution(dtype: torch.dtype) -> float:
    """Logarithm of the least probability that counts: 2⁻¹² in bfloat16, 2⁻¹⁵ in float16."""
    return math.log(torch.finfo(dtype).eps / 32)


def map_shape(tokens: int, vocabulary: int) -> tuple[int, int]:
    """The shape of the map of live tiles."""
    return ceil_divide(tokens, FILTER_TOKENS), ceil_divide(vocabulary, FILTER_COLUMNS)


def mark_live(
    live: Tensor,
    tokens: Tensor,
    tile_maximum: Tensor,
    logsumexp: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
) -> None:
    """Sets the tiles in which one of the given tokens has a gradient that counts.

    Args:
        live: uint8 of `map_shape`, written to.
        tokens: (some,) indices of the tokens, none of them ignored.
        tile_maximum: (some, tiles), the greatest logit of each in each tile of columns.
        logsumexp: (some,).
        targets: (some,), as `Problem` has them.
        dtype: of the hidden states.
    """
    # Negated, so that a tile with a NaN is live and what went wrong stays visible.
    counts = ~(tile_maximum - logsumexp[:, None] <= log_resolution(dtype))
    tiles = torch.arange(live.shape[1], device=live.device)
    counts |= targets.div(FILTER_COLUMNS, rounding_mode="floor")[:, None] == tiles
    blocks = tokens.div(FILTER_TOKENS, rounding_mode="floor")[:, None].expand_as(counts)
    live.scatter_reduce_(0, blocks, counts.to(torch.uint8), "amax")
