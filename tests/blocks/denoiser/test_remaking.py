"""Norms that are made again: less memory, and bit by bit the same gradients."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ropewalk.blocks.denoiser import block
from ropewalk.kernels.adaptive_norm import gated_adaptive_norm

KINDS = {
    "dit": {"rotary": "absolute", "feed_forward": "gelu"},
    "hybrid": {"mixer": "hybrid", "recurrence": "min_gru", "feed_forward": "monarch"},
    "registers": {"registers": 2, "norm": "rms", "adaln": "shared"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@contextlib.contextmanager
def kept_norms(monkeypatch):
    """As if there were no remaking."""
    with monkeypatch.context() as patched:
        patched.setattr(block, "remade", lambda *_: contextlib.nullcontext())
        yield


def gradients(denoiser, arguments, upstream):
    out = denoiser(*arguments)
    leaves = [*denoiser.parameters(), arguments[0]]
    return torch.autograd.grad(out, leaves, upstream)


def call(batch=2):
    torch.manual_seed(1)
    x = torch.randn(batch, 1, 8, 8, requires_grad=True)
    return (x, torch.rand(batch), torch.arange(batch)), torch.randn(batch, 1, 8, 8)


def saved_by(denoiser, arguments, unit):
    """Tensors of at least the stream's size that a forward keeps, in such sizes."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        denoiser(*arguments)
    return sum(size for size, _ in storages.values()) / unit


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bit_by_bit(make_denoiser, monkeypatch, kind, dtype):
    denoiser = make_denoiser(**KINDS[kind]).to(dtype)
    (x, t, y), upstream = call()
    arguments = (x.detach().to(dtype).requires_grad_(), t, y)
    found = gradients(denoiser, arguments, upstream.to(dtype))
    with kept_norms(monkeypatch):
        expected = gradients(denoiser, arguments, upstream.to(dtype))
    assert all(map(torch.equal, found, expected))


def test_two_tensors_a_block_less(make_denoiser, monkeypatch):
    """15.4 units become 13.4 with two blocks of DiT's own form, of which plain torch keeps 22."""
    denoiser = make_denoiser(16, 2, 4, 192, 2, 4, **KINDS["dit"], learn_sigma=True)
    arguments = (torch.randn(24, 4, 16, 16), torch.rand(24), torch.arange(24) % 10)
    unit = 24 * 64 * 192 * 4 * denoiser.depth
    with kept_norms(monkeypatch):
        before = saved_by(denoiser, arguments, unit)
    after = saved_by(denoiser, arguments, unit)
    assert after == pytest.approx(before - 2, abs=0.01)
    assert after < 13.5


def test_packed_sizes(make_denoiser, monkeypatch):
    denoiser = make_denoiser()
    images = [torch.randn(1, 8, 8), torch.randn(1, 4, 12)]

    def of_packed():
        outs = denoiser(images, torch.tensor([0.2, 0.8]))
        loss = sum(out.square().sum() for out in outs)
        return torch.autograd.grad(loss, list(denoiser.parameters()), allow_unused=True)

    found = of_packed()
    with kept_norms(monkeypatch):
        expected = of_packed()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@every_kind
def test_checkpointed_blocks(make_denoiser, monkeypatch, kind):
    """Both make things again; neither undoes what the other saves."""
    denoiser = make_denoiser(**KINDS[kind], depth=4)
    arguments, upstream = call()
    expected = gradients(denoiser, arguments, upstream)
    for one in denoiser.blocks:
        forward = one.forward
        monkeypatch.setattr(
            one, "forward", lambda *a, f=forward: checkpoint(f, *a, use_reentrant=False)
        )
    found = gradients(denoiser, arguments, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Of the streams inside of blocks only those between two of them are left, and the last.
    streams = []

    def recorded(*given, **options):
        residual, h = gated_adaptive_norm(*given, **options)
        streams.append(weakref.ref(residual))
        return residual, h

    monkeypatch.setattr(block, "gated_adaptive_norm", recorded)
    out = denoiser(*arguments)
    assert len(streams) == 8
    assert sum(ref() is not None for ref in streams) <= 5
    assert out.requires_grad


def test_saved_on_the_cpu(make_denoiser):
    denoiser = make_denoiser()
    arguments, upstream = call()
    expected = gradients(denoiser, arguments, upstream)
    with torch.autograd.graph.save_on_cpu():
        found = gradients(denoiser, arguments, upstream)
    assert all(map(torch.equal, found, expected))


def test_second_derivatives(make_denoiser, monkeypatch):
    denoiser = make_denoiser(**KINDS["dit"], depth=1, dim=16, heads=2).double()
    (x, t, y), upstream = call(1)
    x = x.detach().double().requires_grad_()

    def curvature():
        out = denoiser(x, t, y)
        (first,) = torch.autograd.grad(out, x, upstream.double(), create_graph=True)
        return torch.autograd.grad(
            first.square().sum(), [x, *denoiser.parameters()], allow_unused=True
        )

    # Plain attention: torch's fused one has no second derivative on a CPU.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = curvature()
        with kept_norms(monkeypatch):
            expected = curvature()
    assert found[0].any()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None and theirs is None) or torch.allclose(ours, theirs)


def test_transforms(make_denoiser):
    denoiser = make_denoiser(**KINDS["dit"], depth=1)
    (x, t, y), upstream = call()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        pull = torch.func.vjp(lambda x: denoiser(x, t, y), x.detach())[1]
        (found,) = pull(upstream)
        (expected,) = torch.autograd.grad(denoiser(x, t, y), x, upstream)
    torch.testing.assert_close(found, expected)


def test_nothing_is_hooked_without_gradients(make_denoiser, monkeypatch):
    def refuse(*_):
        raise AssertionError("no hooks are wanted")

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", refuse)
    arguments, _ = call()
    with torch.no_grad():
        make_denoiser()(*arguments)


def test_changed_in_place_before_it_is_kept(make_denoiser, monkeypatch):
    """A mixer or a hook may write into the norm: that is then what has to be kept."""
    denoiser = make_denoiser(**KINDS["dit"])

    def write(_, given):
        given[0].mul_(1.5)

    for one in denoiser.blocks:
        one.feed_forward.register_forward_pre_hook(write)
    arguments, upstream = call()
    found = gradients(denoiser, arguments, upstream)
    with kept_norms(monkeypatch):
        expected = gradients(denoiser, arguments, upstream)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", ["mixer.qkv", "feed_forward.input"])
def test_weights_that_change_before_the_backward_are_noticed(make_denoiser, name):
    """As autograd notices it where nothing is hooked."""
    denoiser = make_denoiser(**KINDS["dit"])
    arguments, upstream = call()
    out = denoiser(*arguments)
    with torch.no_grad():
        denoiser.blocks[0].get_submodule(name).weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(upstream)


@pytest.mark.parametrize("inside", [True, False])
def test_tokens_under_autocast(make_denoiser, monkeypatch, inside):
    """Their stream begins in float32 and is normed in bfloat16, wherever the backward runs."""
    denoiser = make_denoiser((4,), 1, None, vocabulary=5)
    tokens, t, y = torch.randint(0, 6, (2, 4)), torch.rand(2), torch.arange(2)

    def of_tokens():
        with torch.autocast("cpu", torch.bfloat16):
            loss = denoiser(tokens, t, y).float().square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return torch.autograd.grad(loss, list(denoiser.parameters()))

    found = of_tokens()
    with kept_norms(monkeypatch):
        expected = of_tokens()
    assert all(map(torch.equal, found, expected))


def test_a_forward_without_a_backward_leaves_nothing(make_denoiser, monkeypatch):
    denoiser, branches = make_denoiser(), []

    def recorded(x, branch, *given, **options):
        branches.append(weakref.ref(branch.untyped_storage()))
        return gated_adaptive_norm(x, branch, *given, **options)

    monkeypatch.setattr(block, "gated_adaptive_norm", recorded)
    arguments, _ = call()
    out = denoiser(*arguments)
    assert len(branches) == 6
    del out
    gc.collect()
    assert not any(ref() is not None for ref in branches)
