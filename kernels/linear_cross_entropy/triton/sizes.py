"""How many tokens and columns are held at once, so that scratch stays within the workspace."""

from ropewalk.kernels.linear_cross_entropy import chunks
from ropewalk.kernels.linear_cross_entropy.chunks import Chunks
from ropewalk.kernels.linear_cross_entropy.filter import FILTER_COLUMNS, FILTER_TOKENS
from ropewalk.kernels.sizes import ceil_divide

MOST_TOKENS = 16384
"""Tokens of a chunk of the backward: enough that its products run at full speed."""


def round_up(count: int, size: int) -> int:
    return ceil_divide(count, size) * size


def even_chunk(count: int, most: int, size: int) -> int:
    """The size, a multiple of `size`, of chunks of about the same length, at most `most`.

    At least `size`, whatever `most` is.
    """
    most = max(size, most // size * size)
    return round_up(ceil_divide(count, ceil_divide(count, most)), size)


def statistics_tokens(tokens: int, tiles: int, parts: int) -> int:
    """Tokens whose `parts` float32 numbers for each tile fit the workspace."""
    return even_chunk(tokens, chunks.WORKSPACE // (4 * parts * tiles), FILTER_TOKENS)


def gradient_chunks(tokens: int, vocabulary: int, itemsize: int) -> Chunks:
    """Tokens and columns of logits whose gradient fits the workspace, in whole tiles of the filter.

    All tokens at once where that leaves enough columns: then the gradient of the weights is one
    product for each chunk of columns and needs no accumulator.
    """
    elements = chunks.WORKSPACE // itemsize
    tokens_here = even_chunk(tokens, min(MOST_TOKENS, elements // FILTER_COLUMNS), FILTER_TOKENS)
    columns = even_chunk(vocabulary, elements // tokens_here, FILTER_COLUMNS)
    return Chunks(tokens_here, columns)
