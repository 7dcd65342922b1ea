"""`rotate_query_key(inplace=True)` writes over its tensors, and its gradients are still right."""

from collections import Counter

import pytest
import torch

from ropewalk.blocks.rotary import RotaryEmbedding
from ropewalk.kernels.rotary import LAYOUTS, rotate_query_key
from ropewalk.kernels.rotary.overlap import overlap


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("token_major", [False, True])
def test_it_writes_over_the_tensors(inputs, layout, norm, token_major):
    make = inputs(pairs=4, dtype=torch.float32)
    query, key = make.query_key(token_major=token_major)
    angles = make.angles()
    options = {"layout": layout}
    if norm:
        options |= {
            "query_norm_weight": make.weight().detach(),
            "key_norm_weight": make.weight().detach(),
        }
    expected = rotate_query_key(query, key, angles.cos(), angles.sin(), **options)
    assert not torch.equal(query, expected[0])
    versions = query._version, key._version
    got = rotate_query_key(query, key, angles.cos(), angles.sin(), inplace=True, **options)
    assert got[0] is query
    assert got[1] is key
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])
    assert query._version > versions[0]
    assert key._version > versions[1]


def test_views_of_one_tensor(inputs):
    make = inputs(dtype=torch.float32)
    query, key = make.query_key(token_major=True)
    joint = torch.cat((query.transpose(1, 2), key.transpose(1, 2)), 2)
    cos, sin = make.angles().cos(), make.angles().sin()
    expected = rotate_query_key(query, key, cos, sin)
    views = joint[:, :, :4].transpose(1, 2), joint[:, :, 4:].transpose(1, 2)
    rotate_query_key(*views, cos, sin, inplace=True)
    assert torch.equal(joint, torch.cat(expected, 1).transpose(1, 2))


def losses(kind, query, key, cos, sin, *, inplace, layout):
    """Gradients of what the tensors were made of, and of an earlier use of one of them."""
    source = torch.cat((query, key), 1).clone().requires_grad_()
    if kind == "views":
        joint = 2 * source
        query, key = joint[:, :4], joint[:, 4:]
    else:
        query, key = 2 * source[:, :4], 2 * source[:, 4:]
    if kind == "query only":
        key = key.detach()
    turned = rotate_query_key(query, key, cos, sin, layout=layout, inplace=inplace)
    weight = torch.linspace(-1, 1, turned[0].numel()).view(turned[0].shape)
    loss = (turned[0] * weight).sum() + turned[1].pow(3).sum()
    return torch.autograd.grad(loss, source)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["tensors", "views", "query only"])
def test_gradients_flow_through_it(inputs, layout, kind):
    make = inputs(pairs=5)
    query, key = make.query_key()
    cos, sin = make.angles().cos(), make.angles().sin()
    got, expected = (
        losses(kind, query, key, cos, sin, inplace=inplace, layout=layout)
        for inplace in (True, False)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.opcheck
def test_gradcheck(inputs):
    make = inputs(batch=1, heads=2, kv_heads=1, queries=3, head_dim=6, pairs=2)
    cos, sin = make.angles().cos(), make.angles().sin()

    def function(query, key):
        return rotate_query_key(query.clone(), key.clone(), cos, sin, inplace=True)

    tensors = tuple(x.requires_grad_() for x in make.query_key())
    torch.autograd.gradcheck(function, tensors)
    torch.autograd.gradgradcheck(function, tensors)


def test_a_tensor_that_was_saved_may_not_be_written(inputs):
    make = inputs()
    query, key = (x.requires_grad_() * 2 for x in make.query_key())
    squared = query.square()
    cos, sin = make.angles().cos(), make.angles().sin()
    rotate_query_key(query, key, cos, sin, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_what_cannot_be_written_is_refused_before_it_is(inputs):
    make = inputs()
    query, key = make.query_key()
    cos, sin = make.angles().cos(), make.angles().sin()
    weight = make.weight()

    def call(query, key, **options):
        return rotate_query_key(query, key, cos, sin, inplace=True, **options)

    leaf = query.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        call(leaf, key)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        call(leaf[:], key)
    assert torch.equal(leaf, query)
    with torch.no_grad():
        call(leaf, key.clone())  # as torch's own operations in place
    assert not torch.equal(leaf, query)
    with pytest.raises(ValueError, match="no gradient to be needed with a norm"):
        call(query, key, query_norm_weight=weight)
    with pytest.raises(ValueError, match="no gradient to be needed with a norm"):
        call(leaf * 1, key, query_norm_weight=weight.detach())
    with pytest.raises(ValueError, match=r"query: expected elements of their own .* expanded"):
        call(query[:, :1].expand(-1, 4, -1, -1), key)
    with pytest.raises(ValueError, match="got the same one as query and key"):
        call(query, query)
    before = query.clone()
    with pytest.raises(ValueError, match="without common elements, got overlapping views"):
        call(query, query[:, :2])
    with pytest.raises(ValueError, match="overlapping views"):
        call(query[:, :2], query[:, 1:])
    assert torch.equal(query, before)


def test_overlap_is_an_element_of_both():
    """Against the addresses one by one, of slices and strides of every kind."""
    memory = torch.arange(60)
    generator = torch.Generator().manual_seed(0)
    found = Counter()
    for _ in range(600):
        views = []
        for _ in "ab":
            shape, strides = torch.randint(0, 4, (3,), generator=generator), (1, 2, 3, 4, 6, 9)
            order = torch.randint(6, (3,), generator=generator).tolist()
            start = int(torch.randint(12, (), generator=generator))
            views.append(memory.as_strided(shape.tolist(), [strides[i] for i in order], start))
        common = bool({*views[0].flatten().tolist()} & {*views[1].flatten().tolist()})
        assert overlap(*views) is common, [(x.shape, x.stride()) for x in views]
        found[common] += 1
    assert min(found.values()) > 50
    joint = torch.zeros(2, 1000, 48, 64)
    assert not overlap(joint[:, :, :32].mT, joint[:, :, 32:])
    assert overlap(joint[:, :, :33].mT, joint[:, :, 32:])
    assert not overlap(joint, joint.clone())


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("aot_eager", "tensors"),
        ("aot_eager", "views"),
        pytest.param("inductor", "views", marks=pytest.mark.slow),
    ],
)
def test_it_compiles(inputs, kind, backend):
    torch.compiler.reset()
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    call = torch.compile(losses_forward, fullgraph=True, backend=backend)
    results = []
    for function in (losses_forward, call):
        with torch.no_grad():
            values = function(query.clone(), key.clone(), cos, sin, kind)
        leaves = [x.clone().requires_grad_() for x in (query, key)]
        loss = function(*leaves, cos, sin, kind)
        results.append((values, loss, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results)


def losses_forward(query, key, cos, sin, kind):
    if kind == "views":
        joint = 2 * torch.cat((query, key), 1)
        query, key = joint[:, :4], joint[:, 4:]
    else:
        query, key = 2 * query, 2 * key
    query, key = rotate_query_key(query, key, cos, sin, inplace=True)
    return query.pow(3).sum() + key.square()[..., 0].sum()


def test_the_convenience_does_it_too(inputs):
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    rotary = RotaryEmbedding(12)
    expected = rotary.rotate_query_key(query, key, torch.arange(7))
    rotary.rotate_query_key(query, key, torch.arange(7), inplace=True)
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])
