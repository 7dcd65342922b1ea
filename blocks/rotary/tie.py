"""RoPE-Tie: two-dimensional positions for sequences of text and images.

    text token number n                      (n, n)
    patch (r, c) of an h × w image after L   (L + r·(w + 1), L + c·(h + 1)),  r = 1 … h, c = 1 … w
    the next token                           L + (w + 1)(h + 1)

(kexue.fm/archives/10040.) Both coordinates run from L to the same end, so the image is compatible
with text on either side: rows and columns are spread evenly between the last token before it and
the first after it, and reversing the sequence gives the same distances. Use it with
`AxialRotary(head_dim, 2, arrangement="alternating")`, under which text is rotated exactly as by the
one-dimensional embedding, so that a text model can be carried on training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.rotary.axial import grid_coordinates


def rope_tie_positions(
    segments: Sequence[int | tuple[int, int]],
    *,
    start: int = 0,
    device: torch.device | str | None = None,
) -> Int[Tensor, "seq 2"]:
    """Positions (row, column) of every token of a mixed sequence.

    Args:
        segments: in the order of the sequence, a number of text tokens or the (height, width) of
            an image in patches, whose patches follow row by row.
        start: the position of the first text token. If an image comes first, it lies after
            position start − 1.
        device: where to put the result.

    Returns:
        Int64 (seq, 2), seq being the sum of text tokens and patches.

    Raises:
        TypeError: a segment is neither an integer nor a pair of integers.
        ValueError: there is no segment, or one is empty.

    Example:
        >>> rope_tie_positions([2, (1, 2), 1]).tolist()
        [[0, 0], [1, 1], [4, 3], [4, 5], [7, 7]]
    """
    if not segments:
        raise ValueError("segments: expected at least one, such as [16, (14, 14), 32], got none")
    last = start - 1
    parts: list[Tensor] = []
    for number, segment in enumerate(segments):
        if isinstance(segment, tuple) and len(segment) == 2:
            height, width = segment
            require_integer(f"segments[{number}]", 1, height=height, width=width)
            spacing = torch.tensor([width + 1, height + 1], device=device)
            parts.append(last + (grid_coordinates(height, width, device=device) + 1) * spacing)
            # The next token stands at the far corner, so the last position taken is one before.
            last += (width + 1) * (height + 1) - 1
        elif isinstance(segment, int) and not isinstance(segment, bool):
            if segment < 1:
                raise ValueError(f"segments[{number}]: expected an integer ≥ 1, got {segment!r}")
            text = torch.arange(last + 1, last + 1 + segment, device=device)
            parts.append(text[:, None].expand(-1, 2))
            last += segment
        else:
            raise TypeError(
                f"segments[{number}]: expected a number of text tokens or the (height, width) of "
                f"an image, got {segment!r}"
            )
    return torch.cat(parts)
