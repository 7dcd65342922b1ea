"""Triton's kernels equal the equation: interpreted, on a device, and compiled without one."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.rotary import LAYOUTS, rotate_query_key
from ropewalk.kernels.rotary.rotation import Rotation, empty_alike

BOTH, NEITHER = (True, True), (False, False)


def results(make, oracle, *, layout, norms, token_major, inplace=False):
    """(plain torch, kernels, float64 truth), each outputs and gradients of all leaves."""
    query, key = make.query_key(token_major=token_major)
    angles = make.angles(), make.angles(key.shape[2])
    weights = [make.weight() if norm else None for norm in norms]
    directions = [torch.randn_like(x) for x in (query, key)]
    tables = [table.float() for a in angles for table in (a.cos(), a.sin())]

    def op(query, key, weights, backend):
        if inplace:
            query, key = query * 1, key * 1
        return rotate_query_key(
            query, key, *tables[:2], key_cos=tables[2], key_sin=tables[3], layout=layout,
            query_norm_weight=weights[0], key_norm_weight=weights[1],
            inplace=inplace, backend=backend,
        )  # fmt: skip

    def truth(query, key, weights):
        given = zip((query, key), angles, weights, strict=True)
        return [oracle(x.cpu(), a.cpu(), layout=layout, weight=w) for x, a, w in given]

    found = []
    for function, dtype in (
        (partial(op, backend="reference"), make.dtype),
        (partial(op, backend="triton"), make.dtype),
        (truth, torch.float64),
    ):
        tensors = [x.detach().to(dtype).requires_grad_() for x in (query, key)]
        scales = [None if w is None else w.detach().to(dtype).requires_grad_() for w in weights]
        leaves = [*tensors, *(w for w in scales if w is not None)]
        if function is truth:
            leaves = [x.cpu().detach().requires_grad_() for x in leaves]
            tensors, rest = leaves[:2], iter(leaves[2:])
            scales = [None if w is None else next(rest) for w in scales]
        values = function(*tensors, scales)
        along = [d.to(v.device, v.dtype) for d, v in zip(directions, values, strict=True)]
        found.append((*values, *torch.autograd.grad(values, leaves, along)))
    return found


CASES = {
    "plain": ({}, NEITHER),
    "both norms": ({}, BOTH),
    "one norm": ({}, (False, True)),
    "partial": ({"head_dim": 11, "pairs": 3}, NEITHER),
    "partial, normed": ({"head_dim": 11, "pairs": 3}, BOTH),
    "shared table": ({"by_row": False, "heads": 3, "kv_heads": 3}, BOTH),
    "lengths of their own": ({"queries": 2, "keys": 70, "heads": 2, "kv_heads": 1}, BOTH),
    "one token": ({"batch": 1, "queries": 1, "heads": 5, "kv_heads": 1}, (True, False)),
    "several tiles": ({"queries": 150, "head_dim": 80, "pairs": 40, "kv_heads": 1}, BOTH),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_equation(
    inputs, oracle, kernel_device, uninitialised, as_exact_as, layout, case
):
    sizes, norms = CASES[case]
    make = inputs(**sizes, dtype=torch.float32, device=kernel_device)
    for values in zip(
        *results(make, oracle, layout=layout, norms=norms, token_major=True), strict=True
    ):
        as_exact_as(*values, times=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 72, 96, 128, 256])
@pytest.mark.gpu
def test_half_precision_on_a_device(inputs, oracle, as_exact_as, layout, dtype, head_dim):
    for pairs, norms in ((head_dim // 2, NEITHER), (head_dim // 2, BOTH), (head_dim // 8, BOTH)):
        make = inputs(
            heads=8, queries=301, head_dim=head_dim, pairs=pairs, dtype=dtype, device="cuda"
        )
        for token_major in (False, True):
            found = results(make, oracle, layout=layout, norms=norms, token_major=token_major)
            for values in zip(*found, strict=True):
                as_exact_as(*values)


def test_half_precision(inputs, oracle, kernel_device, as_exact_as):
    """Float16 only: the interpreter cuts bfloat16 off where a device rounds it."""
    make = inputs(dtype=torch.float16, device=kernel_device, pairs=5)
    for values in zip(
        *results(make, oracle, layout="interleaved", norms=BOTH, token_major=False), strict=True
    ):
        as_exact_as(*values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pairs", [2, 6])
def test_in_place(inputs, oracle, kernel_device, as_exact_as, layout, pairs):
    make = inputs(dtype=torch.float32, device=kernel_device, pairs=pairs)
    for values in zip(
        *results(make, oracle, layout=layout, norms=NEITHER, token_major=True, inplace=True),
        strict=True,
    ):
        as_exact_as(*values)


def test_in_place_after_a_norm(inputs, kernel_device):
    make = inputs(dtype=torch.float32, device=kernel_device, pairs=4)
    query, key = make.query_key()
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    with torch.no_grad():
        call = partial(rotate_query_key, query_norm_weight=make.weight(), backend="triton")
        expected = call(query, key, cos, sin)
        call(query, key, cos, sin, inplace=True)
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])


def test_any_strides_and_any_gradient(inputs, kernel_device):
    """Strides that share no factor, expanded tensors, a gradient of one number."""
    make = inputs(dtype=torch.float32, device=kernel_device)
    query, key = (torch.stack((x, x, x), -1)[..., 1].requires_grad_() for x in make.query_key())
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    weight = make.weight()
    found = []
    for backend in ("reference", "triton"):
        got = rotate_query_key(
            query, key[:, :1].expand(-1, 3, -1, -1), cos, sin, query_norm_weight=weight,
            backend=backend,
        )  # fmt: skip
        loss = got[0].sum() + got[1].sum()
        found.append((*got, *torch.autograd.grad(loss, (query, key, weight))))
    torch.testing.assert_close(*found)


def test_results_repeat_bit_for_bit(inputs, kernel_device):
    make = inputs(dtype=torch.float32, device=kernel_device, queries=40)
    query, key = make.query_key()
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    weight = make.weight()
    gradients = []
    for _ in range(2):
        got = rotate_query_key(query, key, cos, sin, query_norm_weight=weight, backend="triton")
        gradients.append(torch.autograd.grad(got[0].square().sum(), weight)[0])
    assert torch.equal(*gradients)


@pytest.mark.gpu
def test_auto_is_triton_on_a_device(inputs):
    make = inputs(dtype=torch.bfloat16, device="cuda")
    query, key = make.query_key()
    cos, sin = make.angles().float().cos(), make.angles().float().sin()
    auto, triton = (rotate_query_key(query, key, cos, sin, backend=b) for b in ("auto", "triton"))
    assert torch.equal(auto[0], triton[0])
    exact = rotate_query_key(query.double(), key.double(), cos, sin)  # no kernel, but a result
    assert exact[0].dtype == torch.float64


@pytest.mark.gpu
def test_tensors_beyond_32_bit_offsets():
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    query = torch.randn(1, 2, 2**23 + 1, 128, device="cuda", dtype=torch.bfloat16)
    angles = torch.rand(query.shape[2], 64, device="cuda")
    cos, sin = angles.cos(), angles.sin()
    got = rotate_query_key(query, query[:, :1], cos, sin)[0][:, :, -5:]
    expected = rotate_query_key(
        query[:, :, -5:], query[:, :1, -5:], cos[-5:], sin[-5:], backend="reference"
    )[0]
    torch.testing.assert_close(got, expected)


def launches(compile_launches, arch, *, direction, tokens, heads, kv_heads, head_dim, pairs,
             dtype, layout, norm, inplace=False):  # fmt: skip
    from ropewalk.kernels.rotary.triton import launch

    def like(count):
        shape = (1, tokens, count, head_dim)
        return torch.empty(shape, dtype=dtype, device="meta").transpose(1, 2)

    table = torch.empty(1, tokens, pairs, device="meta")
    weight = torch.empty(head_dim, dtype=dtype, device="meta") if norm else None
    rotation = Rotation(*4 * (table,), *2 * (weight,), 1e-6, layout, inverse=False)
    query, key = like(heads), like(kv_heads)
    if direction == "forward":
        outs = (query, key) if inplace else (empty_alike(query), empty_alike(key))
        return compile_launches(launch.forward, query, key, *outs, rotation, arch=arch)
    grads = [like(n) for n in (heads, kv_heads, heads, kv_heads)]
    return compile_launches(launch.backward, query, key, *grads, rotation, arch=arch)


SHAPES = {
    # head_dim, pairs, layout, dtype
    "64": (64, 32, "half", torch.bfloat16),
    "72": (72, 36, "half", torch.bfloat16),
    "80": (80, 40, "half", torch.float16),
    "96": (96, 48, "half", torch.bfloat16),
    "128": (128, 64, "half", torch.bfloat16),
    "256": (256, 128, "half", torch.bfloat16),
    "float32": (128, 64, "half", torch.float32),
    "quarter": (96, 12, "half", torch.bfloat16),
    "interleaved 72": (72, 36, "interleaved", torch.bfloat16),
    "interleaved 128": (128, 64, "interleaved", torch.bfloat16),
    "interleaved half of 128": (128, 32, "interleaved", torch.bfloat16),
    "interleaved float32": (256, 128, "interleaved", torch.float32),
}


@pytest.mark.compile
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_within_the_chip(compile_launches, arch, shape):
    head_dim, pairs, layout, dtype = SHAPES[shape]
    for direction, tokens, norm in (
        ("forward", 8192, False), ("forward", 8192, True), ("backward", 8192, True),
        ("forward", 1, True),
    ):  # fmt: skip
        (kernel,) = launches(  # queries and keys in one launch
            compile_launches, arch, direction=direction, tokens=tokens, layout=layout, norm=norm,
            heads=32, kv_heads=8, head_dim=head_dim, pairs=pairs, dtype=dtype,
        )  # fmt: skip
        kernel.check()
        if tokens > 1 and pairs % 8 == 0:
            assert "ld.global.v4" in kernel.asm["ptx"]  # 16 bytes at a time


@pytest.mark.compile
def test_in_place_and_float16_compile(compile_launches, arch):
    (kernel,) = launches(
        compile_launches, arch, direction="forward", tokens=512, heads=8, kv_heads=8, head_dim=96,
        pairs=24, dtype=torch.float16, layout="half", norm=False, inplace=True,
    )  # fmt: skip
    kernel.check()
