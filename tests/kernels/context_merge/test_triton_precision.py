"""On a device: full vocabularies, as exact as torch, and sizes past 2³¹."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.context_merge import context_merge
from ropewalk.kernels.context_merge.problem import POOLINGS

pytestmark = pytest.mark.gpu

VOCABULARY = 128256


def output(questions: int, rows: int, vocabulary: int, dtype: torch.dtype, scale: float) -> Tensor:
    """Logits of a scale from flat to peaked, as a model would give them."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (questions, rows, vocabulary)
    return (scale * torch.randn(shape, generator=generator, device="cuda")).to(dtype)


def kept(log_probs: Tensor) -> Tensor:
    return log_probs > float("-inf")


@pytest.mark.parametrize("scale", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 50257, 264])
def test_as_exact_as_torch(vocabulary, dtype, scale, as_exact_as):
    """Tokens whose mass above is within rounding of top_p may be cut or not, so few may differ."""
    rows = output(2, 33, vocabulary, dtype, scale)

    def merged(x: Tensor, backend: str):
        return context_merge(x[:, 1:], x[:, 0], backend=backend)

    truth = merged(rows.double(), "reference")
    peer, ours = merged(rows, "reference"), merged(rows, "triton")
    as_exact_as(peer.entropies, ours.entropies, truth.entropies)
    assert torch.equal(ours.chosen, truth.chosen)
    both = kept(ours.log_probs) & kept(peer.log_probs) & kept(truth.log_probs)
    assert (kept(ours.log_probs) != kept(truth.log_probs)).sum() <= 1e-4 * vocabulary
    as_exact_as(*(x.log_probs.where(both, 0.0) for x in (peer, ours, truth)))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_every_pooling_at_full_size(top_p, pooling):
    rows = output(3, 33, VOCABULARY, torch.bfloat16, 4.0)
    prior = torch.rand(32, device="cuda")
    prior[::5] = 0.0
    options = {"pooling": pooling, "top_p": top_p, "prior": prior}
    ours, peer = (
        context_merge(rows[:, 1:], rows[:, 0], backend=backend, **options)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(ours.entropies, peer.entropies)
    assert torch.equal(ours.chosen, peer.chosen)
    both = kept(ours.log_probs) & kept(peer.log_probs)
    assert (kept(ours.log_probs) != kept(peer.log_probs)).sum() <= 3e-4 * VOCABULARY
    torch.testing.assert_close(ours.log_probs[both], peer.log_probs[both], rtol=1e-4, atol=1e-4)


def test_auto_is_triton_on_a_device():
    rows = output(2, 5, 1000, torch.bfloat16, 3.0)
    found = [
        context_merge(rows[:, 1:], rows[:, 0], backend=backend) for backend in ("auto", "triton")
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_more_logits_than_32_bits_count():
    """2³² logits: the last question is merged as it is by itself."""
    rows = torch.zeros(1024, 33, 2**17, dtype=torch.bfloat16, device="cuda")
    rows[-2:] = output(2, 33, 2**17, torch.bfloat16, 4.0)
    ours = context_merge(rows[:, 1:], rows[:, 0], backend="triton")
    last = context_merge(rows[-2:, 1:], rows[-2:, 0], backend="triton")
    torch.testing.assert_close([x[-2:] for x in ours], list(last), rtol=0, atol=0)


def test_any_address():
    """Rows that begin at no multiple of 16 bytes."""
    rows = output(2, 9, 4099, torch.bfloat16, 4.0)[..., 1:]
    found = context_merge(rows[:, 1:], rows[:, 0], backend="triton")
    aligned = rows.contiguous()
    expected = context_merge(aligned[:, 1:], aligned[:, 0], backend="triton")
    torch.testing.assert_close(found, expected)
