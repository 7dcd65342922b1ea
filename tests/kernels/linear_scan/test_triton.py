"""Triton's kernels equal the oracle: interpreted and on a device.

Interpreted, a program has two channels, and two groups of two steps are a tile.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.linear_scan import linear_scan, triton
from ropewalk.kernels.linear_scan.problem import Needs, Problem

FP32, C64 = torch.float32, torch.complex64
KINDS = [("diagonal", FP32), ("diagonal", C64), ("block2", FP32)]
ALL = Needs(True, True, True)
WHOLE = (1, 100)
kinds = pytest.mark.parametrize(("structure", "dtype"), KINDS, ids=str)


@pytest.fixture
def check(make_scan, scan_oracle, kernel_device):
    """`check(structure, dtype, …)`: states and all gradients are the oracle's."""

    def compare(
        structure, dtype, size=(1, 6, 3), *, split=WHOLE, bounds=None, reverse=False, initial=True
    ):
        wide = torch.complex128 if dtype.is_complex else torch.float64
        sequences = None if bounds is None else len(bounds) - 1
        scan = make_scan(structure, *size, sequences=sequences, initial=initial, dtype=wide)
        expected = scan_oracle(scan.a, scan.b, scan.initial, reverse=reverse, bounds=bounds)
        v = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, scan.tensors, v, allow_unused=True)
        ours = scan.to(dtype=dtype, device=kernel_device)
        cu = None if bounds is None else torch.tensor(bounds, dtype=torch.int32).to(kernel_device)
        detached = [None if t is None else t.detach() for t in (ours.a, ours.b, ours.initial)]
        problem = Problem(*detached, reverse, cu)
        states = triton.forward(problem, split)
        assert states.dtype == dtype
        close(states, expected)
        found = triton.backward(problem, states, v.to(states), ALL._replace(initial=initial), split)
        kept = [t for t in found if t is not None]
        for x, truth, given in zip(kept, gradients, scan.tensors, strict=True):
            close(x, torch.zeros_like(given) if truth is None else truth)

    return compare


def close(ours: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(ours.cpu().to(truth.dtype), truth.detach(), rtol=1e-4, atol=2e-5)


@kinds
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_equal_to_the_oracle(structure, dtype, reverse, check, uninitialised):
    check(structure, dtype, reverse=reverse)


@kinds
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_split_over_time(structure, dtype, reverse, check, uninitialised):
    """Three chunks, of which the last is shorter."""
    check(structure, dtype, (1, 9, 2), split=(3, 4), reverse=reverse)


@kinds
def test_packed_sequences(structure, dtype, check, uninitialised):
    check(structure, dtype, (1, 7, 1), bounds=[0, 0, 5, 5, 6, 7, 7])


@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
def test_packed_sequences_split_over_time(reverse, check, uninitialised):
    """Longer than all chunks, and so short that chunks have nothing."""
    check("diagonal", FP32, (1, 11, 3), bounds=[0, 8, 8, 11], split=(3, 4), reverse=reverse)


@kinds
@pytest.mark.parametrize("time", [0, 1])
def test_no_time_and_one_step(structure, dtype, time, check, uninitialised):
    check(structure, dtype, (2, time, 3))


@kinds
def test_without_an_initial_state(structure, dtype, check, uninitialised):
    check(structure, dtype, (1, 5, 1), initial=False)


@pytest.mark.parametrize(("size", "split"), [((3, 5, 1), (1, 5)), ((1, 14, 2), (2, 11))], ids=str)
def test_odd_sizes(size, split, check, uninitialised):
    check("diagonal", FP32, size, split=split)


@kinds
@pytest.mark.parametrize("layout", ["time last", "every second"])
def test_any_strides(structure, dtype, layout, make_scan, scan_oracle, kernel_device):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    scan = make_scan(structure, 1, 5, 3, dtype=wide)
    expected = scan_oracle(scan.a, scan.b, scan.initial)

    def laid_out(x: Tensor) -> Tensor:
        x = x.detach().to(kernel_device, dtype)
        if layout == "time last":
            return x.transpose(1, -1).contiguous().transpose(1, -1)
        return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]

    problem = Problem(laid_out(scan.a), laid_out(scan.b), laid_out(scan.initial))
    close(triton.forward(problem, WHOLE), expected)


@kinds
def test_one_coefficient_for_all_steps(structure, dtype, make_scan, scan_oracle, kernel_device):
    """A stride of 0; the gradient is still one of each step."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    scan = make_scan(structure, 2, 5, 3, dtype=wide)
    a = scan.a[:1, :1].detach().expand_as(scan.a).clone().requires_grad_()
    expected = scan_oracle(a, scan.b, scan.initial)
    (truth,) = torch.autograd.grad(expected, a, torch.ones_like(expected))
    ours = a.detach()[:1, :1].to(kernel_device, dtype).expand_as(a)
    given = (t.detach().to(kernel_device, dtype) for t in (scan.b, scan.initial))
    problem = Problem(ours, *given)
    states = triton.forward(problem, WHOLE)
    close(states, expected)
    grad = torch.ones((), dtype=dtype, device=kernel_device).expand_as(states)
    found = triton.backward(problem, states, grad, Needs(True, False, False), WHOLE)
    assert found.b is None
    assert found.initial is None
    close(found.a, truth)


@pytest.mark.parametrize("needs", [Needs(False, True, False), Needs(False, False, True)], ids=str)
def test_only_what_is_wanted(needs, make_scan, kernel_device, uninitialised):
    scan = make_scan("diagonal", 2, 5, 3).to(dtype=FP32, device=kernel_device)
    problem = Problem(*(t.detach() for t in (scan.a, scan.b, scan.initial)))
    states = triton.forward(problem, WHOLE)
    every = triton.backward(problem, states, states, ALL, WHOLE)
    some = triton.backward(problem, states, states, needs, WHOLE)
    for wanted, one, other in zip(needs, some, every, strict=True):
        assert (one is not None) == wanted
        assert one is None or torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_coefficients_that_vanish_reset_what_overflowed(kernel_device):
    """Products of coefficients may leave float32 where states do not."""
    a = torch.full((1, 8, 1), 1e30, device=kernel_device)
    b = torch.zeros_like(a)
    a[:, 4], b[:, 4] = 0.0, 1.0
    a[:, 5:] = 0.5
    found = triton.forward(Problem(a, b), WHOLE)
    expected = torch.tensor([0.0, 0, 0, 0, 1, 0.5, 0.25, 0.125])
    torch.testing.assert_close(found.cpu().flatten(), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_coefficients_that_vanish_do_not_hide_an_infinite_state(kernel_device):
    """Zero times infinity is not a number, in later tiles as step by step."""
    a, b = torch.full((1, 11, 1), 0.5), torch.ones(1, 11, 1)
    a[:, 4], b[:, 1] = 0.0, torch.inf
    found = triton.forward(Problem(a.to(kernel_device), b.to(kernel_device)), WHOLE).cpu().flatten()
    assert found[1:4].isinf().all()
    assert found[4:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype, make_scan, scan_oracle, kernel_device):
    scan = make_scan("diagonal", 1, 6, 3).to(dtype=dtype, device=kernel_device)
    rounded = [t.detach().cpu().double() for t in scan.tensors]
    expected = scan_oracle(*rounded)
    found = triton.forward(Problem(*(t.detach() for t in scan.tensors)), WHOLE)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.cpu().double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_the_op_takes_the_kernels(make_scan, scan_oracle, kernel_device):
    scan = make_scan("diagonal", 2, 5, 3)
    ours = scan.to(dtype=FP32, device=kernel_device)
    expected = scan_oracle(scan.a, scan.b, scan.initial)
    found = linear_scan(ours.a, ours.b, ours.initial, backend="triton")
    close(found.detach(), expected)
    truths = torch.autograd.grad(expected[:, -1].sum(), scan.tensors)
    for x, truth in zip(torch.autograd.grad(found[:, -1].sum(), ours.tensors), truths, strict=True):
        close(x, truth)


def test_dense_coefficients_are_refused(kernel_device):
    a, b = torch.ones(1, 3, 2, 2, device=kernel_device), torch.ones(1, 3, 2, device=kernel_device)
    with pytest.raises(ValueError, match="dense"):
        linear_scan(a, b, backend="triton")
