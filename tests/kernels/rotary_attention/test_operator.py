"""The op as a citizen of torch: compilers, dtypes, strides and fakes."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ropewalk.blocks.rotary import (
    DualChunk,
    DynamicNTK,
    LeakyReRoPE,
    LogN,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
)
from ropewalk.kernels.rotary_attention import flash, problem, rotary_attention

ROTARY = RotaryEmbedding(8)


def test_gradient_reaches_a_learned_query_scale(inputs):
    @dataclass
    class Learned:
        weight: torch.Tensor

        def __call__(self, positions):
            return self.weight * (positions.double() + 1)

    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    tensors = inputs().make()

    def function(weight):
        return rotary_attention(*tensors, rotary=ROTARY, distance=ReRoPE(4), log_n=Learned(weight))

    torch.autograd.gradcheck(function, (weight,))


@pytest.mark.parametrize(
    ("rule", "dynamic"),
    [
        (Plain(), True),
        (ReRoPE(5), False),
        (LeakyReRoPE(4, 0.25), False),
        (SelfExtend(3, 7), False),
        (DualChunk(8, 3), True),
    ],
    ids=str,
)
def test_compiles_as_one_graph(inputs, rule, dynamic):
    torch.compiler.reset()
    log_n = LogN(4)  # dynamo of torch 2.11 cannot trace its making

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(query, key, value, mask):
        return rotary_attention(
            query, key, value,
            rotary=ROTARY, distance=rule, attention_mask=mask, log_n=log_n, softcap=5.0,
        )  # fmt: skip

    for length in (11, 14):
        tensors = inputs(queries=length, keys=length).make(grad=True)
        mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
        eager = rotary_attention(
            *tensors, rotary=ROTARY, distance=rule, attention_mask=mask, log_n=log_n,
            softcap=5.0,
        )  # fmt: skip
        got = compiled(*tensors, mask)
        torch.testing.assert_close(got, eager, rtol=0, atol=1e-12)
        for a, b in zip(
            torch.autograd.grad(got.sum(), tensors),
            torch.autograd.grad(eager.sum(), tensors),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("rotary", [ROTARY, None])
def test_the_plain_rule_compiles_for_changing_lengths(inputs, rotary, dynamic):
    """It is torch's fused attention, whose switches are no symbols."""
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(query, key, value):
        return rotary_attention(query, key, value, rotary=rotary)

    for length in (5, 7, 9, 1):
        tensors = inputs(queries=length, keys=length).make()
        expected = rotary_attention(*tensors, rotary=rotary)
        torch.testing.assert_close(compiled(*tensors), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("backend", ["reference", "flash", "auto"])
@pytest.mark.parametrize("rule", [Plain(), ReRoPE(5)], ids=str)
def test_small_integers_are_positions_too(inputs, rule, backend, dtype):
    """Their differences wrap, ours may not."""
    tensors = inputs(queries=12, keys=12).make()
    wide = torch.arange(116, 128)
    expected, got = (
        rotary_attention(
            *tensors, rotary=ROTARY, distance=rule, backend=backend,
            query_positions=at, key_positions=at,
        )
        for at in (wide, wide.to(dtype))
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("at", [torch.arange(4) * 3 + 2**26, torch.arange(4.0) * 1.1 + 2**24])
def test_angles_of_the_plain_rule_are_as_wide_as_the_query(at):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 1, 2, 4, 8, dtype=torch.float64, generator=generator)
    options = {"query_positions": at.double(), "key_positions": at.double(), "causal": False}
    auto, truth = (
        rotary_attention(*tensors, rotary=ROTARY, length=9, backend=backend, **options)
        for backend in ("auto", "reference")
    )
    torch.testing.assert_close(auto, truth, rtol=0, atol=1e-9)


def test_there_is_no_second_derivative(inputs):
    query, key, value = inputs().make(grad=True)
    output = rotary_attention(query, key, value, rotary=ROTARY, distance=ReRoPE(5))
    (first,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


def test_length_dependent_frequencies_compile(inputs):
    torch.compiler.reset()
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(factor=2.0, original_length=8))
    at = torch.arange(19)

    def call(query, key, value):
        return rotary_attention(
            query, key, value,
            rotary=rotary, distance=ReRoPE(4), query_positions=at, key_positions=at,
        )  # fmt: skip

    tensors = inputs().make()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), call(*tensors), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiles_with_inductor(inputs):
    torch.compiler.reset()

    def call(query, key, value):
        return rotary_attention(query, key, value, rotary=ROTARY, distance=ReRoPE(4))

    tensors = inputs(dtype=torch.float32).make()
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), call(*tensors), rtol=1e-5, atol=1e-6)


def two_matrices(query, key, value, window):
    """ReRoPE as everybody ships it, in the tensors' dtype."""
    at = torch.arange(query.shape[2])
    distance = at[:, None] - at
    near = ROTARY.rotate(query, at) @ ROTARY.rotate(key, at).mT
    scores = near
    if window is not None:
        far = ROTARY.rotate(query, torch.full_like(at, window)) @ key.mT
        scores = torch.where(distance < window, near, far)
    scores = scores / query.shape[-1] ** 0.5
    return scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_half_precision_errs_no_more_than_twice_torch(inputs, dtype, window, backend):
    exact = inputs(kv_heads=4, queries=40, keys=40, seed=2).make()
    half = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().float().requires_grad_() for x in half]
    rule = Plain() if window is None else ReRoPE(window)

    def results(output, leaves):
        gradients = torch.autograd.grad(output.float().square().sum(), leaves)
        return [output.float(), *(g.float() for g in gradients)]

    wanted = results(two_matrices(*exact, window), exact)
    plain = results(two_matrices(*half, window), half)
    got = rotary_attention(*half, rotary=ROTARY, distance=rule, backend=backend)
    assert got.dtype == dtype
    ours = results(got, half)
    for name, want, a, b in zip("oqkv", wanted, ours, plain, strict=True):
        error, torch_error = (a - want).abs().max(), (b - want).abs().max()
        assert error <= 2 * torch_error, f"{name}: {error} against {torch_error}"


def test_non_contiguous_inputs(inputs, rule):
    tensors = inputs().make()
    expected = rotary_attention(*tensors, rotary=ROTARY, distance=rule[0])
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    strided = [torch.stack([x, x], -1)[..., 0] for x in tensors]
    for variant in (transposed, strided):
        leaves = [x.requires_grad_() for x in variant]
        assert not any(x.is_contiguous() for x in leaves)
        got = rotary_attention(*leaves, rotary=ROTARY, distance=rule[0])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        torch.autograd.grad(got.transpose(1, 2).square().sum(), leaves)


def test_inputs_are_left_alone(inputs, rule):
    tensors = inputs().make()
    copies = [x.clone() for x in tensors]
    rotary_attention(*tensors, rotary=ROTARY, distance=rule[0])
    for x, copy in zip(tensors, copies, strict=True):
        assert torch.equal(x, copy)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_length_one_and_batch_one(oracle, inputs, rule, batch, queries):
    tensors = inputs(batch=batch, queries=queries, keys=queries).make()
    got = rotary_attention(*tensors, rotary=ROTARY, distance=rule[0])
    expected, _ = oracle(*tensors, rotary=ROTARY, relative=rule[1])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_meta_and_fake_tensors(inputs, rule):
    q, k, v = (x.to("meta") for x in inputs(value_dim=5, dtype=torch.bfloat16).make())
    output, lse = rotary_attention(q, k, v, rotary=ROTARY, distance=rule[0], return_logsumexp=True)
    assert output.shape == (2, 4, 19, 5)
    assert (output.dtype, lse.dtype, lse.shape) == (torch.bfloat16, torch.float32, (2, 4, 19))
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (torch.empty(2, 4, 19, 8, requires_grad=True) for _ in range(3))
        output = rotary_attention(q, k, v, rotary=ROTARY, distance=rule[0])
        gradients = torch.autograd.grad(output.sum(), (q, k, v))
        assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize(("backend", "module"), [("flash", flash.launch), ("reference", problem)])
def test_far_keys_are_not_rotated_in_decoding(inputs, monkeypatch, backend, module):
    """ReRoPE's cache is raw beyond the window; a step rotates only the window's keys."""
    rotated = Counter()
    name = "turn" if backend == "flash" else "rotate"
    rotate = getattr(module, name)

    def spy(*arguments, **options):
        x = next(a for a in arguments if isinstance(a, torch.Tensor))
        turned = rotate(*arguments, **options)
        rotated[x.shape[2]] += turned is not x
        return turned

    monkeypatch.setattr(module, name, spy)
    rotary_attention(
        *inputs(queries=1, keys=300).make(),
        rotary=ROTARY, distance=ReRoPE(window=20), backend=backend,
    )  # fmt: skip
    assert +rotated == {1: 2, 20: 1}


@pytest.mark.parametrize("backend", ["reference", "flash", "auto"])
def test_a_batch_of_nothing_with_positions(backend):
    query, key = torch.randn(0, 4, 5, 8), torch.randn(0, 2, 7, 8)
    output = rotary_attention(
        query, key, key, rotary=ROTARY, distance=ReRoPE(3), backend=backend,
        query_positions=torch.arange(5).expand(0, 5), key_positions=torch.arange(7).expand(0, 7),
    )  # fmt: skip
    assert output.shape == query.shape
