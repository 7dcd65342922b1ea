"""Triton's kernels equal the oracle: interpreted and on a device, in float32."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.adaptive_norm import adaptive_norm, gated_adaptive_norm, triton
from ropewalk.kernels.adaptive_norm.triton.layout import readable

pytestmark = pytest.mark.usefixtures("uninitialised")

LENGTHS = (5, 0, 1, 7, 0)
CASES = {
    "layer": ((2, 5, 7), None, {}),
    "rms": ((1, 6, 7), None, {"norm": "rms"}),
    "affine": ((2, 3, 12), None, {"affine": "weight bias"}),
    "rms, weight": ((1, 2, 8), None, {"norm": "rms", "affine": "weight", "modulation": "scale"}),
    "bias": ((2, 2, 5), None, {"affine": "bias", "modulation": "gate scale"}),
    "one of everything": ((1, 1, 1), None, {"norm": "rms"}),
    "one row for all": ((3, 2, 6), None, {"shared": True}),
    "no gate": ((1, 3, 6), None, {"modulation": "shift scale"}),
    "no modulation": ((1, 3, 6), None, {"modulation": "gate"}),
    "no branch": ((1, 5, 6), None, {"branch": False}),
    "bare norm": ((1, 2, 6), None, {"branch": False, "modulation": ""}),
    "sum": ((1, 5, 7), None, {"norm": None}),
    "sum without a gate": ((1, 3, 4), None, {"norm": None, "modulation": ""}),
    "packed": ((1, 13, 5), LENGTHS, {}),
    "packed, affine": ((1, 13, 6), LENGTHS, {"norm": "rms", "affine": "weight bias"}),
    "packed, sum": ((1, 13, 4), LENGTHS, {"norm": None}),
    "no tokens": ((2, 0, 6), None, {"affine": "weight"}),
    "no samples": ((0, 3, 6), None, {}),
    "packed, no tokens": ((1, 0, 6), (0, 0), {}),
}


def by_kernels(case):
    return case.run("triton")


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_oracle(name, make_case, chain_oracle, with_gradients, kernel_device):
    size, lengths, options = CASES[name]
    drawn = make_case(size, lengths, **options)
    found = with_gradients(by_kernels, drawn.to(torch.float32, kernel_device))
    truth = with_gradients(chain_oracle, drawn.to(torch.float64))
    for key, value in truth.items():
        torch.testing.assert_close(
            found[key].double().cpu(), value, rtol=1e-5, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_half_precision(make_case, chain_oracle, with_gradients, kernel_device, as_exact_as):
    """Float16 only: the interpreter cuts bfloat16 off where a device rounds it."""
    case = make_case((1, 5, 11), affine="weight").to(torch.float16, kernel_device)
    truth = with_gradients(chain_oracle, case.to(torch.float64, "cpu"))
    peer = with_gradients(lambda c: c.run("reference"), case)
    for key, value in with_gradients(by_kernels, case).items():
        as_exact_as(peer[key], value, truth[key])


def test_rows_in_float32(make_case, with_gradients, kernel_device):
    case = make_case((1, 2, 11)).to(torch.float16, kernel_device, rows=torch.float32)
    found, expected = (
        with_gradients(lambda c, b=backend: c.run(b), case) for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


LAYOUTS = {
    "tokens last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "a part of wider rows": lambda x: torch.cat((x, x), 2)[..., : x.shape[2]],
    "every second column": lambda x: x.repeat_interleave(2, 2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, make_case, kernel_device):
    """Of the streams, the rows and the gradients that come, one of them of one number."""
    change = LAYOUTS[layout]
    case = make_case((2, 3, 6)).to(torch.float32, kernel_device)
    rows = {name: change(getattr(case, name)[None])[0] for name in ("gate", "shift", "scale")}
    other = replace(case, x=change(case.x), branch=change(case.branch), **rows)
    assert not other.x.is_contiguous()
    upstream = change(torch.randn_like(case.x)), case.x.new_ones(()).expand(case.x.shape)
    found = []
    for given, backend in ((case, "reference"), (other, "triton")):
        results = given.run(backend)
        found.append((*results, *torch.autograd.grad(results, case.leaves, upstream)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert all(y.is_contiguous() for y in found[1][:2])


def test_columns_too_far_apart_for_32_bits():
    wide = torch.empty(1, device="meta").as_strided((1, 2, 3), (1, 1, 2**30))
    copy = readable(wide)
    assert copy is not None
    assert copy.is_contiguous()
    near = torch.empty(1, device="meta").as_strided((1, 2, 3), (1, 1, 2**29))
    assert readable(near) is near


@pytest.mark.parametrize("wanted", ["x", "branch", "gate", "shift", "scale", "weight", "bias"])
def test_one_gradient_at_a_time(wanted, make_case, kernel_device):
    case = make_case((1, 2, 3), affine="weight bias")
    moved = case.to(torch.float32, kernel_device)
    for name in case.names:
        getattr(moved, name).requires_grad_(name == wanted)
    leaf = getattr(moved, wanted)
    found = [
        torch.autograd.grad(moved.run(backend)[1].sin().sum(), leaf)
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_results(index, make_case, kernel_device):
    case = make_case((1, 2, 3)).to(torch.float32, kernel_device)
    found = [
        torch.autograd.grad(
            case.run(backend)[index].sin().sum(), case.leaves, materialize_grads=True
        )
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_results_repeat_bit_for_bit(make_case, with_gradients, kernel_device):
    """Sums over several parts of a sample too."""
    case = make_case((1, 9, 3), affine="weight bias").to(torch.float32, kernel_device)
    once, again = (with_gradients(by_kernels, case) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_large_means_do_not_cancel(make_case, kernel_device):
    """The variance is that of what the mean was taken from."""
    x = 1000.0 + torch.randn(1, 2, 9, dtype=torch.float64)
    y = adaptive_norm(x.float().to(kernel_device), backend="triton")
    torch.testing.assert_close(
        y.double().cpu(), adaptive_norm(x.float().double()), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_packed_bounds_of_both_kinds(integers, make_case, kernel_device):
    case = make_case((1, 9, 4), (2, 7)).to(torch.float32, kernel_device)
    found = replace(case, cu_seqlens=case.cu_seqlens.to(integers)).run("triton")
    torch.testing.assert_close(found, case.run("reference"))


def test_packed_bounds_are_checked(make_case, kernel_device):
    case = make_case((1, 9, 4), (2, 7)).to(torch.float32, kernel_device)
    wrong = replace(case, cu_seqlens=case.cu_seqlens - case.cu_seqlens.new_tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="must end at the number of tokens, 9, got 8"):
        wrong.run("triton")


@pytest.mark.gpu
def test_auto_is_triton_on_a_device(make_case):
    case = make_case((2, 5, 64)).to(torch.bfloat16, "cuda")
    torch.testing.assert_close(case.run("auto"), case.run("triton"), rtol=0, atol=0)
    assert case.to(torch.float64).run()[0].dtype == torch.float64  # no kernel, but a result


@pytest.mark.gpu
def test_compiles_as_a_whole_on_a_device(make_case, with_gradients):
    case = make_case((2, 50, 64)).to(torch.float32, "cuda")
    torch.compiler.reset()
    compiled = torch.compile(lambda c: c.run(), fullgraph=True)
    torch.testing.assert_close(
        with_gradients(compiled, case), with_gradients(lambda c: c.run(), case)
    )


def test_what_the_kernels_cannot_take():
    assert "up to 8192 numbers, got 8193" in str(triton.unsupported(torch.empty(1, 1, 8193)))
    assert "got torch.int64" in str(triton.unsupported(torch.empty(1, 1, 8).long()))
    assert triton.unsupported(torch.empty(1, 1, 8)) is None
    wide = torch.randn(1, 2, 8193)
    assert torch.equal(gated_adaptive_norm(wide, wide, None)[0], 2 * wide)
