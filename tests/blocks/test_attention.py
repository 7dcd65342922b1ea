"""RotaryAttention: a thin module around the op."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from ropewalk.blocks.attention import KeyValueCache, RotaryAttention
from ropewalk.blocks.rotary import (
    DualChunk,
    LeakyReRoPE,
    LogN,
    NTKAware,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
)

RULES = [
    Plain(),
    ReRoPE(window=5),
    LeakyReRoPE(window=4, factor=8.0),
    SelfExtend(group=3, window=7),
    DualChunk(chunk=8, local=3),
]


def layer(**options) -> RotaryAttention:
    torch.manual_seed(0)
    options.setdefault("rotary", RotaryEmbedding(8))
    return RotaryAttention(32, 4, 2, **options)


def stream(batch: int = 2, length: int = 19, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 32, generator=generator).to(dtype)


def test_plain_equals_attention_written_out():
    module = layer(qk_norm=True, bias=True)
    with torch.no_grad():
        module.query_norm.weight.uniform_(0.5, 2)
        module.key_norm.weight.uniform_(0.5, 2)
    x, at = stream(), torch.arange(19)

    def heads(projection, count):
        return projection(x).view(2, 19, count, 8).transpose(1, 2)

    def norm(y, weight):
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight

    query = norm(heads(module.query_projection, 4), module.query_norm.weight)
    key = norm(heads(module.key_projection, 2), module.key_norm.weight)
    rotary = RotaryEmbedding(8)
    y = F.scaled_dot_product_attention(
        rotary.rotate(query, at),
        rotary.rotate(key, at),
        heads(module.value_projection, 2),
        is_causal=True,
        enable_gqa=True,
    )
    expected = module.output_projection(y.transpose(1, 2).reshape(2, 19, 32))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_packed_sequences_equal_one_after_another(rule):
    module = layer(distance=rule, log_n=LogN(4), sliding_window=None)
    x, starts = stream(batch=1), torch.tensor([0, 7, 7, 8, 19])
    packed = module(x, cu_seqlens=starts)
    alone = [module(x[:, a:b]) for a, b in pairwise(starts) if a < b]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-6)
    weight = module.key_projection.weight
    (got,) = torch.autograd.grad(packed.square().sum(), weight)
    (expected,) = torch.autograd.grad(sum(y.square().sum() for y in alone), weight)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((19, 32), {}, r"x must have shape \(batch, seq, 32\), got \(19, 32\)"),
        ((2, 19, 33), {}, r"got \(2, 19, 33\)"),
        ((1, 5, 32), {"positions": torch.arange(4)}, r"positions must have shape \(5,\)"),
        ((1, 5, 32), {"cu_seqlens": torch.tensor([0, 4])}, "end at the number of tokens, 5, got 4"),
        (
            (1, 5, 32),
            {"cu_seqlens": torch.tensor([0, 5]), "cache": KeyValueCache()},
            "either cache or cu_seqlens",
        ),
    ],
)
@torch.no_grad()
def test_inputs_that_do_not_fit(shape, options, message):
    with pytest.raises(ValueError, match=message):
        layer()(torch.zeros(shape), **options)


def test_state_dict_round_trip_and_deepcopy():
    module = layer(qk_norm=True, bias=True, distance=ReRoPE(5))
    x = stream()
    twin = RotaryAttention(
        32, 4, 2, rotary=RotaryEmbedding(8), qk_norm=True, bias=True, distance=ReRoPE(5)
    )
    twin.load_state_dict(module.state_dict())
    assert not any("rotary" in name for name in module.state_dict())
    for other in (twin, copy.deepcopy(module)):
        assert torch.equal(other(x), module(x))


def test_meta_device():
    module = layer(qk_norm=True)
    with torch.device("meta"):
        twin = RotaryAttention(32, 4, 2, rotary=RotaryEmbedding(8), qk_norm=True)
        assert twin(torch.empty(2, 5, 32)).shape == (2, 5, 32)
    twin = twin.to_empty(device="cpu")
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(stream()), module(stream()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [Plain(), ReRoPE(5)], ids=str)
@torch.no_grad()
def test_half_precision(dtype, rule):
    module = layer(distance=rule, qk_norm=True)
    expected = module(stream())
    got = module.to(dtype)(stream(dtype=dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rule", [Plain(), ReRoPE(5)], ids=str)
def test_compiles_as_one_graph(rule):
    torch.compiler.reset()
    module = layer(distance=rule, qk_norm=True, log_n=LogN(4))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = stream()
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-6)
    # Another rule is another graph, never a stale one.
    module.distance = ReRoPE(2)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-6)
    compiled(x).sum().backward()
    assert module.query_norm.weight.grad is not None


@pytest.mark.parametrize("rule", [Plain(), ReRoPE(5)], ids=str)
@torch.no_grad()
def test_compiles_for_changing_lengths(rule):
    torch.compiler.reset()
    module = layer(distance=rule)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (5, 7, 9):
        x = stream(length=length)
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 3])
@torch.no_grad()
def test_length_one_batch_one_and_non_contiguous(length):
    module = layer(distance=ReRoPE(5))
    x = stream(batch=1, length=length)
    strided = torch.stack((x, x), -1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided), module(x), rtol=0, atol=1e-6)


def test_head_dim_of_its_own_bidirectional_and_interleaved():
    rotary = RotaryEmbedding(
        12, layout="interleaved", rotary_fraction=0.5, frequency=NTKAware(factor=4)
    )
    module = RotaryAttention(30, 5, 1, rotary=rotary, head_dim=12, causal=False, softcap=3.0)
    x = torch.randn(1, 7, 30)
    y = module(x)
    assert y.shape == x.shape
    x2 = x.clone()
    x2[:, -1] += 1
    assert not torch.allclose(module(x2)[:, 0], y[:, 0])


def test_without_positions_order_does_not_matter():
    module = RotaryAttention(32, 4, rotary=None, causal=False)
    x, order = stream(), torch.randperm(19)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=0, atol=1e-6)


def test_a_model_of_ten_lines_trains():
    """Copying the token of three steps ago needs positions."""
    torch.manual_seed(0)
    embed, head = torch.nn.Embedding(8, 32), torch.nn.Linear(32, 8)
    module = layer(distance=LeakyReRoPE.inverse(expansion=4, train_length=16), qk_norm=True)
    parameters = [p for part in (embed, module, head) for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    loss = torch.tensor(torch.inf)
    for _ in range(80):
        tokens = torch.randint(8, (16, 16))
        logits = head(module(embed(tokens)))[:, 3:]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, :-3].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "multiple of kv_heads.*heads 4 and kv_heads 3"),
        ({"heads": 5}, "dim must be a multiple of heads.*dim 32 and heads 5"),
        ({"heads": 8}, "at most head_dim 4, got 8"),
        ({"heads": 0}, "heads 0"),
        ({"heads": 4, "sliding_window": 0}, "sliding_window must be at least 1, got 0"),
        ({"heads": 4, "distance": ReRoPE(5), "causal": False}, "2 branches.*causal=False"),
        ({"heads": 4, "softcap": -1.0}, "softcap must be positive and finite, got -1.0"),
        ({"heads": 4, "backend": "cuda"}, "backend: expected .*got 'cuda'"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        RotaryAttention(32, **options, rotary=RotaryEmbedding(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary": "a"}, "rotary must have rotary_dim.*got str"),
        ({"rotary": RotaryEmbedding}, "the class RotaryEmbedding itself; call it"),
        ({"distance": ReRoPE}, "distance must have branches.*the class ReRoPE itself; call it"),
        ({"log_n": 512}, "log_n must be a function.*got int"),
    ],
)
def test_parts_of_the_wrong_kind(options, message):
    with pytest.raises(TypeError, match=message):
        RotaryAttention(32, 4, **{"rotary": RotaryEmbedding(8), **options})


def test_repr_shows_what_differs_from_plain():
    module = layer(distance=ReRoPE(5), softcap=3.0)
    assert "heads=4, kv_heads=2, distance=ReRoPE(window=5), softcap=3.0" in repr(module)


def normed_layer(**options) -> RotaryAttention:
    module = layer(qk_norm=True, **options)
    with torch.no_grad():
        module.query_norm.weight.uniform_(0.5, 2)
        module.key_norm.weight.uniform_(0.5, 2)
    return module


def outcome(module, x):
    y = module(x)
    leaves = list(module.parameters())
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"rotary": None},
        {"log_n": LogN(4)},
        {"distance": ReRoPE(5)},
        {"sliding_window": 7},
        {"backend": "reference"},
    ],
    ids=str,
)
def test_norms_with_the_rotation_are_the_modules(options):
    """A hook wants the modules to run, and sees what they give."""
    module, x, seen = normed_layer(**options), stream(), []
    found = outcome(module, x)
    for norm in (module.query_norm, module.key_norm):
        norm.register_forward_hook(lambda module, given, y: seen.append(y.shape))
    expected = outcome(module, x)
    assert seen == [(2, 4, 19, 8), (2, 2, 19, 8)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * (1 + theirs.abs().max()))


def test_norms_and_rotation_are_one_pass_where_they_can_be(monkeypatch):
    module, x = normed_layer(), stream()
    expected = module(x)
    monkeypatch.setattr(torch.nn.RMSNorm, "forward", None)
    monkeypatch.setattr(F, "rms_norm", None)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    with torch.no_grad(), pytest.raises(TypeError):
        module(x, cache=KeyValueCache())  # which holds keys as they are normed


def test_norms_that_somebody_put_in_are_run():
    module, x = normed_layer(), stream()
    module.query_norm = torch.nn.LayerNorm(8)
    module.key_norm = torch.nn.Identity()
    query = F.layer_norm(module.query_projection(x).unflatten(-1, (4, 8)), (8,))
    bare = layer()
    bare.load_state_dict(module.state_dict(), strict=False)
    bare.query_projection = torch.nn.Identity()
    bare.query_projection.forward = lambda _: query.flatten(-2)
    torch.testing.assert_close(module(x), bare(x))
