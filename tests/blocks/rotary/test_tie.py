"""RoPE-Tie: images lie between the texts around them, evenly and symmetrically."""

import pytest
import torch

from ropewalk.blocks.rotary import AxialRotary, RotaryEmbedding, rope_tie_positions


def test_text_alone_counts_on_both_axes():
    positions = rope_tie_positions([5])
    assert positions.tolist() == [[n, n] for n in range(5)]
    x = torch.randn(1, 2, 5, 8)
    tied = AxialRotary(8, 2, arrangement="alternating").rotate(x, positions)
    assert torch.equal(tied, RotaryEmbedding(8).rotate(x, torch.arange(5)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 2), (1, 7)])
@pytest.mark.parametrize("text", [1, 4])
def test_patches_stand_where_the_article_puts_them(height, width, text):
    positions = rope_tie_positions([text, (height, width), 2])
    last = text - 1
    patches = positions[text:-2].reshape(height, width, 2)
    for r in range(1, height + 1):
        for c in range(1, width + 1):
            expected = [last + r * (width + 1), last + c * (height + 1)]
            assert patches[r - 1, c - 1].tolist() == expected
    after = last + (width + 1) * (height + 1)
    assert positions[-2:].tolist() == [[after, after], [after + 1, after + 1]]


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 4)])
def test_reversing_the_sequence_keeps_every_distance(height, width):
    forwards = rope_tie_positions([3, (height, width), 5])
    backwards = rope_tie_positions([5, (height, width), 3])
    mirrored = (forwards.max() - forwards).flip(0)
    assert torch.equal(mirrored, backwards)


def test_images_in_a_row_and_at_the_start():
    positions = rope_tie_positions([(1, 1), (1, 1), 1])
    # L = −1: patch at 1, next token would be 3, so the second image lies after 2; and so on.
    assert positions.tolist() == [[1, 1], [4, 4], [6, 6]]
    assert torch.equal(
        rope_tie_positions([2, (2, 2)], start=7), rope_tie_positions([2, (2, 2)]) + 7
    )


@pytest.mark.parametrize(
    ("segments", "error", "message"),
    [
        ([], ValueError, "expected at least one"),
        ([4, 0], ValueError, r"^segments\[1\]: expected an integer ≥ 1, got 0"),
        ([True], TypeError, r"segments\[0\]: expected a number of text tokens or.*got True"),
        ([3, (0, 2)], ValueError, r"segments\[1\].height: expected an integer ≥ 1, got 0"),
        ([3, (2.0, 2)], TypeError, r"segments\[1\].height"),
        ([3, (2, 2, 2)], TypeError, r"segments\[1\]: expected a number of text tokens or"),
        (["a"], TypeError, "got 'a'"),
    ],
)
def test_bad_segments(segments, error, message):
    with pytest.raises(error, match=message):
        rope_tie_positions(segments)
