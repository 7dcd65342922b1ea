"""The model as a module: compilers, dtypes, devices, checkpoints, gradients."""

import copy

import pytest
import torch

from ropewalk.blocks.denoiser import DiffusionTransformer

KINDS = {
    "attention": {"qk_norm": True},
    "hybrid": {"mixer": "hybrid", "adaln": "shared", "norm": "rms"},
    "min_gru": {"mixer": "recurrent", "recurrence": "min_gru", "feed_forward": "monarch"},
    "dit": {"rotary": "absolute", "feed_forward": "gelu", "registers": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def inputs(dtype=torch.float32, batch=2):
    return torch.randn(batch, 1, 8, 8).to(dtype), torch.rand(batch), torch.arange(batch)


@every_kind
def test_compiled_whole(make_denoiser, kind):
    torch._dynamo.reset()
    model = make_denoiser(**KINDS[kind], depth=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, t, y = inputs()
    expected = model(x, t, y)
    found = compiled(x, t, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(found, list(model.parameters()), upstream)
    eager = torch.autograd.grad(expected, list(model.parameters()), upstream)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(make_denoiser, kind, dtype):
    model = make_denoiser(**KINDS[kind])
    x, t, y = inputs()
    expected = model(x, t, y)
    low = copy.deepcopy(model).to(dtype)
    found = low(x.to(dtype), t, y)
    assert found.dtype == dtype
    scale = expected.abs().max()
    margin = {torch.float64: 1e-5, torch.bfloat16: 0.06, torch.float16: 0.01}[dtype]
    assert (found.float() - expected).abs().max() <= margin * scale
    found.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in low.parameters())


@every_kind
def test_autocast(make_denoiser, kind):
    model = make_denoiser(**KINDS[kind])
    x, t, y = inputs()
    expected = model(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, t, y)
    assert (found.float() - expected).abs().max() <= 0.06 * expected.abs().max()
    found.float().sum().backward()


@every_kind
def test_gradients_are_those_of_finite_differences(make_denoiser, kind):
    model = make_denoiser(**KINDS[kind], dim=16, depth=1, heads=2).double()
    x, t, y = inputs(torch.float64)
    direction = [torch.randn_like(p) for p in model.parameters()]
    loss = model(x, t, y).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.add_(step * d)
            values.append(moved(x, t, y).square().mean())
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, slope, rtol=1e-6, atol=1e-9)


@every_kind
def test_state_dict_meta_and_deepcopy(make_denoiser, kind):
    model = make_denoiser(**KINDS[kind])
    x, t, y = inputs()
    expected = model(x, t, y)
    assert torch.equal(copy.deepcopy(model)(x, t, y), expected)
    empty = make_denoiser(**KINDS[kind], device="meta")
    assert empty(x.to("meta"), t.to("meta"), y.to("meta")).shape == expected.shape
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    assert all(p.isfinite().all() for p in filled.parameters())
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled(x, t, y), expected)


@every_kind
def test_layouts_and_small_batches(make_denoiser, kind):
    model = make_denoiser(**KINDS[kind])
    x, t, y = inputs(batch=3)
    expected = model(x, t, y)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (channels_last, strided):
        torch.testing.assert_close(model(other, t, y), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x[:1], t[:1], y[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert model(x[:0], t[:0], y[:0]).shape == (0, 1, 8, 8)
    assert model(x[..., :2, :2], t, y).shape == (3, 1, 2, 2)  # one token


@pytest.mark.parametrize("kind", ["hybrid", "dit"])
def test_exported_for_any_batch(make_denoiser, kind):
    model = make_denoiser(**KINDS[kind], depth=2)
    given = inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, given, dynamic_shapes=({0: batch},) * 3, strict=False)
    more = inputs(batch=5)
    torch.testing.assert_close(exported.module()(*more), model(*more), rtol=1e-4, atol=1e-5)


@every_kind
def test_transforms(make_denoiser, kind):
    """Forward differentiation and gradients of each sample, which see no operator."""
    model = make_denoiser(**KINDS[kind], depth=2).double()
    x, t, y = inputs(torch.float64)
    weights = dict(model.named_parameters())

    def loss(weights, x, t, y):
        out = torch.func.functional_call(model, weights, (x[None], t[None], y[None]))
        return out.square().sum()

    tangent, upstream = torch.randn_like(x), torch.randn_like(x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        forwards = torch.func.jvp(lambda x: model(x, t, y), (x,), (tangent,))[1]
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(weights, x, t, y)
    leaf = x.clone().requires_grad_()
    (backwards,) = torch.autograd.grad(model(leaf, t, y), leaf, upstream)
    torch.testing.assert_close((forwards * upstream).sum(), (tangent * backwards).sum())
    total = torch.autograd.grad(model(x, t, y).square().sum(), list(weights.values()))
    for name, expected in zip(weights, total, strict=True):
        torch.testing.assert_close(found[name].sum(0), expected)


@pytest.mark.parametrize("rotary", ["axial", "none"])
def test_normed_queries_under_autocast(make_denoiser, rotary):
    """No weights in float32 meet what autocast made narrow, of which torch would warn."""
    model = make_denoiser(qk_norm=True, rotary=rotary)
    expected = model(*(given := inputs()))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*given)
    assert (found.float() - expected).abs().max() <= 0.06 * expected.abs().max()


def test_says_what_it_is():
    model = DiffusionTransformer(8, 2, 1, 32, 1, 4, num_classes=3)
    assert "rotary='axial', adaln='full', num_classes=3" in repr(model)
