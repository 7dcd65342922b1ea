"""Every structure, direction and packing against the steps themselves; values and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.kernels.linear_scan import linear_scan
from ropewalk.kernels.linear_scan.reference import chunks

BACKENDS = ("reference", "numba")


def check(scan, oracle, *, reverse, backend, bounds=None, tolerance=1e-10):
    """States and all gradients are those of the steps."""
    cu = None if bounds is None else torch.tensor(bounds)
    got = linear_scan(
        *(scan.a, scan.b, scan.initial), reverse=reverse, cu_seqlens=cu, backend=backend
    )
    wanted = oracle(scan.a, scan.b, scan.initial, reverse=reverse, bounds=bounds)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, scan.tensors, upstream),
        torch.autograd.grad(
            wanted, scan.tensors, upstream, allow_unused=True, materialize_grads=True
        ),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize(
    ("batch", "time", "channels"),
    [(1, 1, 1), (2, 7, 3), (1, 131, 5), (3, 48, 2), (2, 0, 3), (0, 60, 3), (2, 60, 0)],
)
def test_states_and_gradients(
    make_scan, scan_oracle, structure, batch, time, channels, initial, reverse, backend
):
    scan = make_scan(structure, batch, time, channels, initial=initial)
    check(scan, scan_oracle, reverse=reverse, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_complex_numbers(make_scan, scan_oracle, structure, reverse, backend):
    scan = make_scan(structure, 2, 99, 4, dtype=torch.complex128)
    check(scan, scan_oracle, reverse=reverse, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_marked_as_conjugated(make_scan, scan_oracle, backend):
    scan = make_scan("diagonal", 2, 9, 4, dtype=torch.complex128)
    marked = [t.detach().conj() for t in scan.tensors]
    got = linear_scan(*marked, backend=backend)
    torch.testing.assert_close(got, scan_oracle(*marked))
    compiled = torch.compile(linear_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*marked, backend=backend), got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "lengths", [(5, 1, 0, 60), (0, 0), (3,), (70, 2, 2, 2, 2, 2, 2), (9, 8, 9, 8)]
)
def test_packed_sequences(make_scan, scan_oracle, structure, lengths, reverse, backend):
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    scan = make_scan(structure, 1, bounds[-1], 3, sequences=len(lengths))
    check(scan, scan_oracle, reverse=reverse, backend=backend, bounds=bounds)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 3), st.integers(1, 300), st.integers(1, 4), st.booleans(),
    st.sampled_from(BACKENDS), st.integers(0, 10),
)  # fmt: skip
def test_any_sizes(
    make_scan, scan_oracle, structure, batch, time, channels, reverse, backend, seed
):
    scan = make_scan(structure, batch, time, channels, seed=seed)
    check(scan, scan_oracle, reverse=reverse, backend=backend)


def test_wide_batches_and_narrow_ones_agree(make_scan, monkeypatch):
    """Step by step where a step fills a call, by chunks elsewhere."""
    scan = make_scan("diagonal", 2, 200, 3)
    by_chunks = linear_scan(scan.a, scan.b, scan.initial, backend="reference")
    monkeypatch.setattr(chunks, "WIDE", 1)
    in_turn = linear_scan(scan.a, scan.b, scan.initial, backend="reference")
    torch.testing.assert_close(by_chunks, in_turn, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_that_overflows_leaves_its_neighbours_alone(backend):
    a, b = torch.full((1, 300, 2), 1.0), torch.ones(1, 300, 2)
    a[:, 100:200] = 10.0
    cu = torch.tensor([0, 100, 200, 300])
    x = linear_scan(a, b, cu_seqlens=cu, backend=backend)
    assert x[0, 150:200].isinf().any()
    torch.testing.assert_close(x[0, 200:], torch.arange(1.0, 101.0).unsqueeze(1).expand(-1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("growth", "first"), [(1e3, 0.0), (1e12, 1e-30)])
def test_products_that_overflow_where_no_state_does(
    scan_oracle, structure, growth, first, reverse, backend
):
    """Nothing grows out of zero, and little out of little before it is taken back."""
    factors = torch.full((400,), 0.5)
    if first:
        factors[100:105], factors[105:110] = growth, 1 / growth
        factors[:100] = 1.0
    else:
        factors[:200] = growth
    a = factors.view(1, -1, 1).repeat(1, 1, 2)
    b = torch.randn(1, 400, 2) * (torch.arange(400) >= 200).view(1, -1, 1)
    initial = torch.full((1, 2), first)
    if structure == "dense":
        a = torch.diag_embed(a)
    if structure == "block2":
        a = torch.eye(2).view(2, 2, 1) * a.unsqueeze(-2).unsqueeze(-2)
        b, initial = (x.unsqueeze(-2).repeat_interleave(2, -2) for x in (b, initial))
    if reverse:
        a, b = a.flip(1), b.flip(1)
    wanted = scan_oracle(a, b, initial, reverse=reverse)
    assert wanted.isfinite().all()
    got = linear_scan(a, b, initial, reverse=reverse, backend=backend)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_coefficient_that_is_no_number(make_scan, scan_oracle, structure, reverse, backend):
    """It reaches what follows it; chunks are not given up for it."""
    scan = make_scan(structure, 1, 300, 3)
    a = scan.a.detach().clone()
    a[0, 150, ..., 1] = torch.nan
    wanted = scan_oracle(a, scan.b, scan.initial, reverse=reverse)
    got = linear_scan(a, scan.b, scan.initial, reverse=reverse, backend=backend)
    torch.testing.assert_close(got, wanted, equal_nan=True)
    assert 0 < int(wanted.isnan().sum()) < wanted.numel()


def test_chunks_are_cut_only_for_products_that_overflow(monkeypatch):
    """A coefficient that is no number makes none of them right."""
    tried = []
    run = chunks._in_chunks
    monkeypatch.setattr(
        chunks, "_in_chunks", lambda *given, **options: tried.append(0) or run(*given, **options)
    )
    a, b = torch.full((1, 8192, 2), 0.5), torch.randn(1, 8192, 2)
    for first, growth, times in ((0.5, 1.0, 1), (torch.nan, 1.0, 1), (0.5, 1e2, 2)):
        a[0, 4000], a[0, 5000:5032] = first, growth
        b[0, :5040] = 0
        linear_scan(a, b, backend="reference")
        assert len(tried) == times
        tried.clear()


@pytest.mark.parametrize("backend", BACKENDS)
def test_broadcast_coefficients(structure, make_scan, scan_oracle, backend):
    """One matrix for all times, as of a time-invariant system; its gradient is a sum."""
    scan = make_scan(structure, 2, 70, 3)
    a = scan.a.detach()[:1, :1].clone().requires_grad_()
    wanted = scan_oracle(a.expand(2, 70, *a.shape[2:]), scan.b, scan.initial)
    got = linear_scan(a, scan.b, scan.initial, backend=backend)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, a, upstream), torch.autograd.grad(wanted, a, upstream)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(structure, make_scan, scan_oracle, backend):
    """Every other channel of something larger, with time in front."""
    scan = make_scan(structure, 2, 60, 3)
    spread = []
    for x in scan.tensors:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x.detach()
        spread.append(wide.transpose(0, 1).contiguous().transpose(0, 1)[..., ::2].requires_grad_())
    got = linear_scan(*spread, backend=backend)
    assert got.is_contiguous()
    wanted = scan_oracle(scan.a, scan.b, scan.initial)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn(2, *wanted.shape[1:], dtype=wanted.dtype).flip(-1)
    torch.testing.assert_close(
        torch.autograd.grad(got, spread, upstream),
        torch.autograd.grad(wanted, scan.tensors, upstream),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32_and_rounded_once(make_scan, scan_oracle, structure, dtype, backend):
    scan = make_scan(structure, 2, 90, 5).to(dtype=dtype)
    wide = scan.to(dtype=torch.float64)
    got, wanted = linear_scan(*scan.tensors, backend=backend), scan_oracle(*wide.tensors)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)
    upstream = torch.randn_like(wanted).to(dtype)
    ours = torch.autograd.grad(got, scan.tensors, upstream)
    truth = torch.autograd.grad(wanted, wide.tensors, upstream.double())
    # Ninety steps in float32, and one rounding to the output's dtype.
    margin = max(2 * torch.finfo(dtype).eps, 90 * torch.finfo(torch.float32).eps)
    for of_ours, of_truth in zip(ours, truth, strict=True):
        assert of_ours.dtype == dtype
        error = (of_ours.double() - of_truth).abs().max()
        assert error <= margin * of_truth.abs().max()
