"""The compiled loops: precision, layouts, threads, and what is not a number.

States and gradients of every structure, direction and packing are in test_oracle.py.
"""

import pytest
import torch

from ropewalk.kernels.linear_scan import linear_scan
from ropewalk.kernels.linear_scan import numba as loops
from ropewalk.kernels.linear_scan.problem import Needs, Problem

ALL = Needs(True, True, True)


def relative(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found.to(expected.dtype) - expected).norm() / expected.norm())


def both(scan, **options):
    """States, and gradients for a fixed gradient of the states."""
    x = linear_scan(scan.a, scan.b, scan.initial, backend="numba", **options)
    upstream = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape).to(x.dtype)
    return [x, *torch.autograd.grad(x, scan.tensors, upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("reverse", [False, True])
def test_single_precision(make_scan, structure, dtype, reverse):
    wide = make_scan(
        structure, 2, 130, 37, dtype=torch.float64 if dtype.is_floating_point else torch.complex128
    )
    for found, expected in zip(
        both(wide.to(dtype=dtype), reverse=reverse), both(wide, reverse=reverse), strict=True
    ):
        assert found.dtype == dtype
        assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(make_scan, structure, dtype):
    scan = make_scan(structure, 2, 200, 9).to(dtype=dtype)
    found, expected = both(scan), both(scan.to(dtype=torch.float64))
    assert {t.dtype for t in found} == {dtype}
    torch.testing.assert_close(
        found[0], expected[0].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6
    )
    # The states that a_grad is made of were rounded.
    for got, wanted in zip(found[1:], expected[1:], strict=True):
        assert relative(got, wanted) < torch.finfo(dtype).eps


@pytest.mark.parametrize("broadcast", ["batch", "time", "both"])
def test_broadcast_coefficients(make_scan, scan_oracle, structure, broadcast):
    scan = make_scan(structure, 3, 21, 4)
    thin = scan.a[:1] if broadcast != "time" else scan.a
    thin = thin[:, :1] if broadcast != "batch" else thin
    a = thin.expand_as(scan.a)
    expected = scan_oracle(a, scan.b, scan.initial)
    found = linear_scan(a, scan.b, scan.initial, backend="numba")
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, scan.tensors, upstream),
        torch.autograd.grad(expected, scan.tensors, upstream),
    )


def layouts(x):
    """The same numbers with time first, with channels apart, and inside something larger."""
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.mT.contiguous().mT
    held = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
    held[..., 1::2] = x
    yield held[..., 1::2]


def test_layouts(make_scan, structure):
    scan = make_scan(structure, 2, 19, 5)
    a, b, initial = (t.detach() for t in scan.tensors)
    plain = Problem(a, b, initial)
    states = loops.forward(plain)
    v = torch.randn_like(states)
    gradients = loops.backward(plain, states, v, ALL)
    for other_a, other_b, other_v in zip(layouts(a), layouts(b), layouts(v), strict=True):
        problem = Problem(other_a, other_b, initial)
        found = loops.forward(problem)
        assert found.is_contiguous()
        assert torch.equal(found, states)
        for got, wanted in zip(
            loops.backward(problem, states, other_v, ALL), gradients, strict=True
        ):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bounds", [None, (0, 40, 40, 41, 300)])
def test_threads_change_nothing(make_scan, monkeypatch, structure, reverse, bounds):
    sequences = None if bounds is None else len(bounds) - 1
    scan = make_scan(
        structure, 2 if bounds is None else 1, 300, 70, sequences=sequences, dtype=torch.float32
    )
    cu = None if bounds is None else torch.tensor(bounds)
    alone = both(scan, reverse=reverse, cu_seqlens=cu)
    monkeypatch.setattr("ropewalk.kernels.compiled.threads.WORTH_A_THREAD", 100.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    for found, expected in zip(both(scan, reverse=reverse, cu_seqlens=cu), alone, strict=True):
        assert torch.equal(found, expected)


def test_more_channels_than_a_block_has(make_scan, scan_oracle):
    scan = make_scan("diagonal", 1, 5, loops.launch.MOST_CHANNELS + 3)
    expected = scan_oracle(scan.a, scan.b, scan.initial)
    torch.testing.assert_close(both(scan)[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_in_its_channel(make_scan, value, dtype):
    scan = make_scan("diagonal", 2, 30, 40).to(dtype=dtype)
    expected = both(scan)[0]
    with torch.no_grad():
        scan.b[1, 10, 7] = value
    found = both(scan)[0]
    touched = ~(found == expected)
    assert touched[1, 10, 7]
    assert not found[1, 10:, 7].isfinite().any()
    touched[1, 10:, 7] = False
    assert not touched.any()


def test_only_what_is_wanted_is_given(make_scan):
    scan = make_scan("diagonal", 2, 6, 3)
    problem = Problem(*(t.detach() for t in scan.tensors))
    states = loops.forward(problem)
    everything = loops.backward(problem, states, states, ALL)
    for wanted in (Needs(True, False, False), Needs(False, True, False), Needs(False, False, True)):
        found = loops.backward(problem, states, states, wanted)
        for name in Needs._fields:
            value = getattr(found, name)
            if getattr(wanted, name):
                assert torch.equal(value, getattr(everything, name))
            else:
                assert value is None


@pytest.mark.parametrize(("time", "channels"), [(0, 3), (4, 0)])
def test_nothing_to_do(structure, make_scan, time, channels):
    scan = make_scan(structure, 2, time, channels)
    problem = Problem(*(t.detach() for t in scan.tensors))
    states = loops.forward(problem)
    gradients = loops.backward(problem, states, states, ALL)
    assert states.shape == scan.b.shape
    assert [g is not None and g.shape for g in gradients] == [t.shape for t in scan.tensors]
    assert torch.equal(gradients.initial, torch.zeros_like(scan.initial))


def test_what_they_cannot_take():
    assert loops.unsupported(torch.zeros(1)) is None
    assert "meta" in (loops.unsupported(torch.zeros(1, device="meta")) or "")
    assert "int64" in (loops.unsupported(torch.zeros(1, dtype=torch.int64)) or "")
