"""What a head refuses to compute with, and that the refusal stands in no compiler's way."""

import pytest
import torch

from ropewalk.blocks.heads import TiedEmbedding


@pytest.mark.parametrize("call", ["logits", "raw_logits"])
def test_a_matrix_elsewhere_is_refused(call):
    """torch multiplies a CPU tensor with a meta one, to whatever was in memory."""
    head = TiedEmbedding(13, 6, device="meta")
    with pytest.raises(ValueError, match=r"expected on meta.*got cpu.*untie\(model\) before offl"):
        getattr(head, call)(torch.zeros(3, 6))
    with pytest.raises(ValueError, match="expected on meta"):
        head.loss(torch.zeros(3, 6), torch.zeros(3).long())
    assert getattr(head, call)(torch.zeros(3, 6, device="meta")).is_meta


@pytest.mark.parametrize("call", ["embed", "logits", "raw_logits"])
def test_lists_are_refused(call):
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        getattr(TiedEmbedding(13, 6), call)([1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("output", ["swap", "orthogonal"])
def test_other_dtypes_are_cast_by_autocast_alone(output):
    head, hidden = TiedEmbedding(13, 6, output=output), torch.zeros(3, 6).bfloat16()
    for call in (head.logits, lambda x: head.loss(x, torch.zeros(3).long())):
        with pytest.raises(ValueError, match=r"expected torch.float32 as this.*got torch.bfloat16"):
            call(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            assert call(hidden).isfinite().all()


def test_the_checks_can_be_traced():
    head, hidden = TiedEmbedding(13, 6, output="swap"), torch.randn(3, 6)
    expected = head.logits(hidden)
    compiled = torch.compile(lambda x: head.logits(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(hidden).dtype == torch.bfloat16
