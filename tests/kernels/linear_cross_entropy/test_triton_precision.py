"""On a device: half precision as exact as torch with the logits in memory, and sizes past 2³¹."""

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.linear_cross_entropy import chunks, linear_cross_entropy

pytestmark = pytest.mark.gpu

OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 20.0},
    "everything": {"softcap": 20.0, "logit_scale": 0.7, "z_loss": 1e-4, "label_smoothing": 0.1},
}


def leaves(tokens, dim, vocabulary, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, dim), (vocabulary, dim), (vocabulary,))
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[1] *= 4 / dim**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[::7] = -100
    return [x.to("cuda", dtype).requires_grad_() for x in made], targets.cuda()


def of(function, given, dtype, targets, **options):
    """Loss and gradients."""
    hidden, weight, bias = (x.detach().to(dtype).requires_grad_() for x in given)
    loss = function(hidden, weight, targets, bias=bias, **options)
    return [loss, *torch.autograd.grad(loss, (hidden, weight, bias))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(1500, 256, 5000), (700, 250, 5003), (40, 512, 3001)], ids=str)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("workspace", [chunks.WORKSPACE, 2**20], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("exact", [True, False])
def test_as_exact_as_logits_in_memory(
    dtype, size, option, workspace, exact, oracle, as_exact_as, monkeypatch
):
    monkeypatch.setattr(chunks, "WORKSPACE", workspace)
    given, targets = leaves(*size, dtype)
    if not exact and dtype != torch.float32:
        # Peaked, so that what is left out is below the rounding that torch's error is made of.
        given[1].data *= 4

    def kernels(*arguments, **options):
        return linear_cross_entropy(*arguments, exact=exact, backend="triton", **options)

    truth = of(oracle, given, torch.float64, targets, **OPTIONS[option])
    peer = of(oracle, given, dtype, targets, **OPTIONS[option])
    ours = of(kernels, given, dtype, targets, **OPTIONS[option])
    for values in zip(peer, ours, truth, strict=True):
        as_exact_as(*values)


def test_auto_is_triton_on_a_device():
    given, targets = leaves(300, 64, 1000, torch.bfloat16)
    found = [
        of(linear_cross_entropy, given, torch.bfloat16, targets, backend=backend)
        for backend in ("auto", "triton")
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_more_logits_than_32_bits_count(as_exact_as, oracle):
    """2³² logits; all tokens but the last are ignored, so that torch can hold the rest."""
    given, targets = leaves(2**14, 16, 2**18, torch.bfloat16)
    targets[:-5] = -100
    ours = of(linear_cross_entropy, given, torch.bfloat16, targets, backend="triton")
    last = [given[0][-5:], *given[1:]]
    truth = of(oracle, last, torch.float64, targets[-5:])
    peer = of(oracle, last, torch.bfloat16, targets[-5:])
    assert not ours[1][:-5].any()
    ours[1] = ours[1][-5:]
    for values in zip(peer, ours, truth, strict=True):
        as_exact_as(*values)


def test_memory_beside_the_gradients():
    """At most a tenth of them, for Gemma-2 2B's head and 8192 tokens."""
    hidden = torch.randn(8192, 2304, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(256000, 2304, device="cuda", dtype=torch.bfloat16).mul_(0.02)
    weight.requires_grad_()
    targets = torch.randint(256000, (8192,), device="cuda")
    for _ in range(2):  # the first call also makes the library's own workspace
        hidden.grad = weight.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        linear_cross_entropy(hidden, weight, targets, softcap=30.0, backend="triton").backward()
        used = torch.cuda.max_memory_allocated() - before
    gradients = sum(x.numel() * x.element_size() for x in (hidden, weight))
    assert used <= 1.1 * gradients, f"{used / gradients:.3f} of the gradients"
