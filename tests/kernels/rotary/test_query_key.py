"""`rotate_query_key` norms queries and keys, turns their pairs, and does nothing else."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.blocks.rotary import AxialRotary, NTKAware, RotaryEmbedding, grid_coordinates
from ropewalk.kernels.rotary import LAYOUTS, rotate, rotate_query_key

NORMS = [(False, False), (True, True), (True, False), (False, True)]


def norm_weights(make, which):
    return tuple(make.weight() if wanted else None for wanted in which)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"heads": 6, "kv_heads": 1, "head_dim": 10, "pairs": 2},
        {"heads": 1, "kv_heads": 3, "head_dim": 7, "pairs": 3},
        {"queries": 5, "keys": 9, "by_row": False},
        {"batch": 1, "queries": 1, "head_dim": 2, "pairs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_values_and_gradients_are_those_of_complex_numbers(inputs, oracle, layout, sizes, norms):
    make = inputs(**sizes)
    query, key = (x.requires_grad_() for x in make.query_key())
    angles, key_angles = make.angles(), make.angles(key.shape[2])
    weights = norm_weights(make, norms)
    leaves = [x for x in (query, key, *weights) if x is not None]
    expected = tuple(
        oracle(x, a, layout=layout, weight=w, eps=1e-3)
        for x, a, w in zip((query, key), (angles, key_angles), weights, strict=True)
    )
    got = rotate_query_key(
        query, key, angles.cos(), angles.sin(),
        key_cos=key_angles.cos(), key_sin=key_angles.sin(), layout=layout,
        query_norm_weight=weights[0], key_norm_weight=weights[1], norm_eps=1e-3,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    direction = [torch.randn_like(x) for x in got]
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        rtol=0,
        atol=1e-11,
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_shapes_in_float32(inputs, oracle, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    head_dim = draw(2, 40)
    make = inputs(
        batch=draw(1, 3), heads=draw(1, 5), kv_heads=draw(1, 3), queries=draw(1, 9),
        keys=draw(1, 9), head_dim=head_dim, pairs=draw(1, head_dim // 2), by_row=draw(0, 1) == 1,
        dtype=torch.float32, seed=draw(0, 9),
    )  # fmt: skip
    query, key = (x.requires_grad_() for x in make.query_key(token_major=draw(0, 1) == 1))
    angles, key_angles = make.angles(), make.angles(key.shape[2])
    weights = norm_weights(make, (draw(0, 1), draw(0, 1)))
    layout = data.draw(st.sampled_from(LAYOUTS))
    leaves = [x for x in (query, key, *weights) if x is not None]
    expected = [
        oracle(x, a, layout=layout, weight=w, eps=0.1)
        for x, a, w in zip((query, key), (angles, key_angles), weights, strict=True)
    ]
    # With this epsilon a short row's gradient is not so large that float32's rounding shows.
    got = rotate_query_key(
        query, key, angles.cos(), angles.sin(),
        key_cos=key_angles.cos(), key_sin=key_angles.sin(), layout=layout,
        query_norm_weight=weights[0], key_norm_weight=weights[1], norm_eps=0.1,
    )  # fmt: skip
    for value, exact in zip(got, expected, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    gradients, exact_gradients = (
        torch.autograd.grad(sum(x.pow(2).sin().sum() for x in outs), leaves)
        for outs in (got, expected)
    )
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_rotate_of_each(inputs, layout):
    make = inputs(dtype=torch.float32)
    (query, key), angles = make.query_key(), make.angles().float()
    cos, sin = angles.cos(), angles.sin()
    turned = rotate_query_key(query, key, cos, sin, layout=layout)
    for x, y in zip((query, key), turned, strict=True):
        assert torch.equal(y, rotate(x, cos[:, None], sin[:, None], layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_kept_and_opposite_angles_undo_it(inputs, layout):
    make = inputs(pairs=5)
    query, key = make.query_key()
    angles = make.angles()
    turned = rotate_query_key(query, key, angles.cos(), angles.sin(), layout=layout)
    torch.testing.assert_close(turned[0].norm(dim=-1), query.norm(dim=-1))
    back = rotate_query_key(*turned, angles.cos(), -angles.sin(), layout=layout)
    torch.testing.assert_close(back, (query, key))


def test_scores_depend_on_distances_only(inputs):
    make = inputs(by_row=False)
    query, key = make.query_key()
    rotary = RotaryEmbedding(12)

    def scores(start: int):
        q, k = rotary.rotate_query_key(query, key, start + torch.arange(7).double())
        return torch.einsum("bhid,bhjd->bhij", q[:, ::2], k)

    torch.testing.assert_close(scores(1000), scores(-3), rtol=0, atol=1e-5)


def test_the_norm_is_torchs(inputs):
    make = inputs()
    query, key = make.query_key()
    angles, weights = make.angles(), (make.weight(), make.weight())
    cos, sin = angles.cos(), angles.sin()
    normed = (F.rms_norm(x, (12,), w, 1e-6) for x, w in zip((query, key), weights, strict=True))
    expected = rotate_query_key(*normed, cos, sin)
    got = rotate_query_key(
        query, key, cos, sin, query_norm_weight=weights[0], key_norm_weight=weights[1]
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    # Norms that multiply by 1 + w.
    plus_one = rotate_query_key(query, key, cos, sin, query_norm_weight=(weights[0] - 1) + 1)
    torch.testing.assert_close(plus_one[0], expected[0], rtol=0, atol=1e-13)


def test_rows_of_zeros_and_huge_rows_are_normed_without_nan(inputs):
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    query[0, 0, 0], key[0, 0] = 0, 3e17
    leaves = query.requires_grad_(), key.requires_grad_()
    angles, weights = make.angles(), norm_weights(make, (True, True))
    got = rotate_query_key(
        query, key, angles.cos(), angles.sin(),
        query_norm_weight=weights[0], key_norm_weight=weights[1],
    )  # fmt: skip
    assert all(x.isfinite().all() for x in got)
    gradients = torch.autograd.grad(got[0].sum() + got[1].sum(), (*leaves, *weights))
    assert all(x.isfinite().all() for x in gradients)


def test_it_is_what_transformers_computes(inputs):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    positions = torch.randint(0, 5000, (2, 7))
    rotary = RotaryEmbedding(12)
    cos, sin = rotary(positions)
    doubled = (torch.cat((table, table), -1) for table in (cos, sin))
    expected = llama.apply_rotary_pos_emb(query, key, *doubled)
    torch.testing.assert_close(rotate_query_key(query, key, cos, sin), expected)
    torch.testing.assert_close(rotary.rotate_query_key(query, key, positions), expected)


def test_norm_and_rotation_are_what_qwen3_computes(inputs):
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    norms = [qwen3.Qwen3RMSNorm(12, eps=1e-5) for _ in range(2)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    cos, sin = RotaryEmbedding(12)(torch.arange(7)[None])
    doubled = (torch.cat((table, table), -1) for table in (cos, sin))
    expected = qwen3.apply_rotary_pos_emb(norms[0](query), norms[1](key), *doubled)
    got = rotate_query_key(
        query, key, cos, sin,
        query_norm_weight=norms[0].weight, key_norm_weight=norms[1].weight, norm_eps=1e-5,
    )  # fmt: skip
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_result_is_rounded(inputs, oracle, layout, norm, dtype):
    make = inputs(dtype=dtype)
    (query, key), angles = make.query_key(), make.angles()
    weights = norm_weights(make, (norm, norm))
    got = rotate_query_key(
        query, key, angles.cos(), angles.sin(), layout=layout,
        query_norm_weight=weights[0], key_norm_weight=weights[1],
    )  # fmt: skip
    for x, y, weight in zip((query, key), got, weights, strict=True):
        assert y.dtype == dtype
        exact = oracle(x, angles, layout=layout, weight=weight)
        # Half an ulp of the dtype, and a little for the float32 in between.
        rounding = 0.51 * torch.finfo(dtype).eps + 1e-6
        torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [False, True])
def test_strides_do_not_matter_and_are_kept(inputs, layout, norm):
    make = inputs(dtype=torch.float32)
    angles, weights = make.angles(), norm_weights(make, (norm, norm))

    def call(query, key):
        return rotate_query_key(
            query, key, angles.cos(), angles.sin(), layout=layout,
            query_norm_weight=weights[0], key_norm_weight=weights[1],
        )  # fmt: skip

    query, key = make.query_key(token_major=True)
    expected = call(query.contiguous(), key.contiguous())
    joint = torch.cat((query.transpose(1, 2), key.transpose(1, 2)), 2)  # one projection's output
    variants = {
        "token major": (query, key),
        "one projection": tuple(x.transpose(1, 2) for x in joint.split((4, 2), 2)),
        "strided": tuple(torch.stack((x, x), -1)[..., 0] for x in (query, key)),
    }
    for name, tensors in variants.items():
        got = call(*tensors)
        assert torch.equal(got[0], expected[0]), name
        assert torch.equal(got[1], expected[1]), name
        by_token = [x.stride(1) < x.stride(2) for x in tensors]
        assert [x.stride(1) < x.stride(2) for x in got] == by_token, name
    expanded = call(query[:, :1].expand(-1, 4, -1, -1), key)
    assert torch.equal(expanded[0][:, 3], call(query[:, :1], key)[0][:, 0])


def test_positions_of_every_kind(inputs):
    make = inputs(dtype=torch.float32)
    query, key = make.query_key()
    rotary = RotaryEmbedding(12, frequency=NTKAware(factor=4), layout="interleaved")
    for positions in (
        torch.arange(7),
        torch.arange(7)[None],
        torch.randint(0, 1000, (2, 7)),
        torch.linspace(-1, 1, 7),
    ):
        got = rotary.rotate_query_key(query, key, positions)
        assert torch.equal(got[0], rotary.rotate(query, positions))
        assert torch.equal(got[1], rotary.rotate(key, positions))
    step = rotary.rotate_query_key(query[:, :, -1:], key, torch.tensor([6]), torch.arange(7))
    whole = rotary.rotate_query_key(query, key, torch.arange(7))
    assert torch.equal(step[0], whole[0][:, :, -1:])
    assert torch.equal(step[1], whole[1])


def test_axes(inputs):
    query, key = inputs(queries=6, dtype=torch.float32).query_key()
    axial, grid = AxialRotary(12, axes=2), grid_coordinates(2, 3)
    got = rotate_query_key(query, key, *axial(grid), layout=axial.layout)
    assert torch.equal(got[0], axial.rotate(query, grid))
    assert torch.equal(got[1], axial.rotate(key, grid))


@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"queries": 0}, {"heads": 0}, {"kv_heads": 0}], ids=str
)
@pytest.mark.parametrize("norm", [False, True])
def test_sizes_of_none(inputs, sizes, norm):
    make = inputs(**sizes)
    query, key = (x.requires_grad_() for x in make.query_key())
    angles, weights = make.angles(), norm_weights(make, (norm, norm))
    got = rotate_query_key(
        query, key, angles.cos(), angles.sin(),
        query_norm_weight=weights[0], key_norm_weight=weights[1],
    )  # fmt: skip
    assert [x.shape for x in got] == [query.shape, key.shape]
    leaves = [x for x in (query, key, *weights) if x is not None]
    gradients = torch.autograd.grad(got[0].sum() + got[1].sum(), leaves)
    assert all(x.isfinite().all() for x in gradients)
