"""`rotate_query_key` as a citizen of torch: operator checks, compilers, autocast, fake tensors."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ropewalk.blocks.rotary import DynamicNTK, RotaryEmbedding
from ropewalk.kernels.rotary import LAYOUTS, op, rotate_query_key
from ropewalk.kernels.rotary.inplace import rotate_query_key_inplace_op


def arguments(make, layout, norms, *, token_major=False, grad=True):
    """Of the operators."""
    query, key = (x.requires_grad_(grad) for x in make.query_key(token_major=token_major))
    angles = make.angles().to(make.dtype)
    weights = [make.weight().requires_grad_(grad) if norm else None for norm in norms]
    return (
        query, key, *2 * (angles.cos(), angles.sin()), *weights, 1e-6, layout, False, "reference",
    )  # fmt: skip


@pytest.mark.opcheck
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norms", [(False, False), (True, True), (False, True)], ids=str)
@pytest.mark.parametrize("token_major", [False, True])
def test_opcheck(inputs, layout, norms, token_major):
    make = inputs(dtype=torch.float32, pairs=4)
    given = arguments(make, layout, norms, token_major=token_major)
    torch.library.opcheck(op.rotate_query_key_op, given)
    outside = arguments(make, layout, norms, token_major=token_major, grad=False)
    torch.library.opcheck(rotate_query_key_inplace_op, outside)
    grads = [torch.randn_like(x) for x in outside[:2]]
    torch.library.opcheck(op.rotate_query_key_backward_op, (*outside[:2], *grads, *outside[2:]))


@pytest.mark.opcheck
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norms", [(False, False), (True, True), (True, False)], ids=str)
def test_gradcheck(inputs, layout, norms):
    make = inputs(batch=1, heads=2, kv_heads=1, queries=3, head_dim=7, pairs=2)
    given = arguments(make, layout, norms)
    leaves = [x for x in (*given[:2], *given[6:8]) if x is not None]

    def function(*leaves):
        weights = iter(leaves[2:])
        return op.rotate_query_key_op(
            *leaves[:2], *given[2:6], *(next(weights) if norm else None for norm in norms),
            1e-2, layout, False, "reference",
        )  # fmt: skip

    torch.autograd.gradcheck(function, leaves)
    torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", ["all", "weights", "query", "key"])
def test_gradients_of_gradients_with_norms_are_those_of_complex_numbers(
    inputs, oracle, layout, wanted
):
    """One weight for both norms, and keys that are made of the queries."""
    make = inputs(batch=1, heads=2, kv_heads=2, queries=3, head_dim=7, pairs=2)
    query, key = make.query_key()
    angles, weight = make.angles(), make.weight()
    leaves = {"query": [query], "key": [key], "weights": [weight], "all": [query, key, weight]}
    weight.requires_grad_(wanted in ("weights", "all"))
    for x in leaves[wanted]:
        x.requires_grad_()

    def penalty(function):
        turned = function(query, key + query.sin() if wanted == "all" else key)
        values = turned[0].sin().sum() + turned[1].cos().sum()
        first = torch.autograd.grad(values, leaves[wanted], create_graph=True)
        second = sum(x.square().sum() for x in first)
        return first, torch.autograd.grad(second, leaves[wanted])

    def ours(query, key):
        return rotate_query_key(
            query, key, angles.cos(), angles.sin(), layout=layout,
            query_norm_weight=weight, key_norm_weight=weight, norm_eps=1e-2,
        )  # fmt: skip

    def exact(*tensors):
        return [oracle(x, angles, layout=layout, weight=weight, eps=1e-2) for x in tensors]

    torch.testing.assert_close(penalty(ours), penalty(exact), rtol=0, atol=1e-9)


def test_gradients_of_gradients_of_a_compiled_function_are_refused(inputs):
    torch.compiler.reset()
    make = inputs()
    query, key = make.query_key()
    angles = make.angles()
    weight = make.weight()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(query, key, weight):
        return rotate_query_key(query, key, angles.cos(), angles.sin(), query_norm_weight=weight)

    values = sum(x.sin().sum() for x in compiled(query, key, weight))
    (first,) = torch.autograd.grad(values, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.sum(), weight)


@pytest.mark.parametrize(
    ("backend", "norm"),
    [
        ("aot_eager", False),
        ("aot_eager", True),
        pytest.param("inductor", True, marks=pytest.mark.slow),
    ],
)
def test_compiles_as_one_graph(inputs, backend, norm):
    torch.compiler.reset()
    rotary = RotaryEmbedding(12, frequency=DynamicNTK(2.0, 4), layout="interleaved")

    def block(x, weight, positions):
        """Projections as they come, (batch, seq, heads, head_dim)."""
        query, key = (y.transpose(1, 2) for y in x.unflatten(-1, (6, 12)).split((4, 2), 2))
        query, key = rotary.rotate_query_key(
            query, key, positions, query_norm_weight=weight, key_norm_weight=weight
        )
        scores = query @ key.repeat_interleave(2, 1).mT
        return scores.softmax(-1).square().sum()

    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    for seq in (5, 8):
        x = torch.randn(2, seq, 72, requires_grad=True)
        weight = torch.rand(12, requires_grad=True) if norm else None
        leaves = (x, weight) if norm else (x,)
        losses = [f(x, weight, torch.arange(seq)) for f in (block, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        torch.testing.assert_close(
            torch.autograd.grad(losses[1], leaves), torch.autograd.grad(losses[0], leaves)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(inputs, dtype):
    make = inputs(dtype=torch.float32)
    (query, key), weight = make.query_key(), make.weight()
    cos, sin = make.angles().float().cos(), make.angles().float().sin()

    def call(query, key):
        return rotate_query_key(query, key, cos, sin, query_norm_weight=weight)

    with torch.autocast("cpu", dtype=dtype):
        got = call(query, key.to(dtype))
    expected = call(query.to(dtype), key.to(dtype))
    assert got[0].dtype == dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        inside = torch.autograd.grad(got[0].float().sum(), weight)
    torch.testing.assert_close(inside, torch.autograd.grad(expected[0].float().sum(), weight))
    with torch.autocast("cpu", dtype=dtype):
        written = rotate_query_key(query, key, cos, sin, inplace=True)
    assert written[0] is query
    assert query.dtype == torch.float32


def test_meta_and_fake_tensors(inputs):
    make = inputs(dtype=torch.bfloat16, device="meta")
    query, key = make.query_key()
    table = torch.empty(2, 7, 6, device="meta")
    got = rotate_query_key(query, key, table, table, query_norm_weight=make.weight())
    assert [x.shape for x in got] == [query.shape, key.shape]
    with FakeTensorMode():
        query, key = torch.empty(2, 3, 5, 8, requires_grad=True), torch.empty(2, 1, 5, 8)
        weight, table = torch.empty(8, requires_grad=True), torch.empty(5, 4)
        got = rotate_query_key(query, key, table, table, query_norm_weight=weight)
        gradients = torch.autograd.grad(got[0].sum(), (query, weight))
        assert [x.shape for x in gradients] == [query.shape, weight.shape]


def test_a_rotation_keeps_nothing_for_its_backward_but_the_angles(inputs):
    make = inputs(dtype=torch.float32)
    query, key = (x.requires_grad_() for x in make.query_key())
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.shape) or x, lambda x: x
    ):
        rotate_query_key(query, key, cos, sin)
    assert set(saved) == {cos.shape}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.shape) or x, lambda x: x
    ):
        rotate_query_key(query, key, cos, sin, query_norm_weight=make.weight())
    assert {query.shape, key.shape} <= set(saved)


def test_inputs_are_left_alone(inputs):
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    copies = query.clone(), key.clone()
    rotate_query_key(
        query, key, torch.ones(7, 6), torch.ones(7, 6), query_norm_weight=make.weight()
    )
    assert torch.equal(query, copies[0])
    assert torch.equal(key, copies[1])


def test_importing_it_does_not_import_triton():
    code = "import sys, ropewalk.kernels.rotary; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norms", [(False, False), (True, False)], ids=str)
def test_transforms(inputs, layout, norms):
    """Forward differentiation, which operators would give a tangent of zero, and vmap."""
    make = inputs(dtype=torch.float64, head_dim=7, pairs=2)
    query, key, cos, sin, *_ = arguments(make, layout, norms, grad=False)
    options = {"layout": layout, "query_norm_weight": make.weight() if norms[0] else None}

    def rotated(query, key):
        return rotate_query_key(query, key, cos, sin, **options)

    tangents = torch.randn_like(query), torch.randn_like(key)
    found = torch.func.jvp(rotated, (query, key), tangents)[1]
    step = 1e-6
    moved = [
        rotated(query + sign * step * tangents[0], key + sign * step * tangents[1])
        for sign in (1, -1)
    ]
    for tangent, ahead, behind in zip(found, *moved, strict=True):
        torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)
    pairs = torch.stack([query, -query]), torch.stack([key, 2 * key])
    for i, both in enumerate(torch.func.vmap(rotated)(*pairs)):
        for j in range(2):
            torch.testing.assert_close(both[j], rotated(pairs[0][j], pairs[1][j])[i])
    with pytest.raises(ValueError, match="inplace: expected False under"):
        torch.func.vmap(lambda q, k: rotate_query_key(q, k, cos, sin, inplace=True))(*pairs)
