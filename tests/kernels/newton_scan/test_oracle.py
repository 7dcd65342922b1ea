"""Every cell and algorithm against the steps themselves; values, gradients, what is reported."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.kernels.newton_scan import CELLS, newton_scan
from ropewalk.kernels.newton_scan.reference import newton, passes

WAYS = [
    (backend, algorithm)
    for backend in ("reference", "numba")
    for algorithm in ("newton", "sequential")
]


def call(recurrence, **options):
    r = recurrence
    return newton_scan(r.inputs, r.weights, r.initial, cell=r.cell, **options)


def check(recurrence, oracle, *, bounds=None, tolerance=1e-9, **options):
    """States and all gradients are those of the steps."""
    cu = None if bounds is None else torch.tensor(bounds)
    got = call(recurrence, cu_seqlens=cu, **options).states
    wanted = oracle(recurrence, bounds=bounds)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    if not wanted.requires_grad:
        return  # of no steps
    upstream = torch.randn_like(wanted)
    ours = torch.autograd.grad(got, recurrence.tensors, upstream)
    truth = torch.autograd.grad(wanted, recurrence.tensors, upstream, materialize_grads=True)
    for own, right in zip(ours, truth, strict=True):
        # Gradients may grow along time, and all the numbers with them.
        scale = max(float(right.abs().amax()), 1.0) if right.numel() else 1.0
        torch.testing.assert_close(own, right, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize(
    ("batch", "time", "channels"),
    [(1, 1, 1), (2, 7, 3), (1, 131, 5), (2, 0, 3), (0, 60, 3), (2, 60, 0)],
)
def test_states_and_gradients(
    make_recurrence, recurrence_oracle, cell, batch, time, channels, initial, backend, algorithm
):
    recurrence = make_recurrence(cell, batch, time, channels, initial=initial)
    check(recurrence, recurrence_oracle, backend=backend, algorithm=algorithm)


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
@pytest.mark.parametrize("lengths", [(5, 1, 0, 60), (0, 0), (3,), (70, 2, 2, 2, 2), (9, 8, 9)])
def test_packed_sequences(make_recurrence, recurrence_oracle, cell, lengths, backend, algorithm):
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    recurrence = make_recurrence(cell, 1, bounds[-1], 3, sequences=len(lengths))
    check(recurrence, recurrence_oracle, bounds=bounds, backend=backend, algorithm=algorithm)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 3), st.integers(1, 200), st.integers(1, 4), st.sampled_from(WAYS),
    st.sampled_from([0.3, 1.0, 2.0]), st.one_of(st.none(), st.integers(1, 80)), st.integers(0, 10),
)  # fmt: skip
def test_any_sizes_and_windows(
    make_recurrence, recurrence_oracle, cell, batch, time, channels, way, std, window, seed
):
    recurrence = make_recurrence(cell, batch, time, channels, std=std, seed=seed)
    backend, algorithm = way
    check(
        recurrence, recurrence_oracle, backend=backend, algorithm=algorithm, window=window,
        tolerance=1e-7,
    )  # fmt: skip


def residual_of(cell, inputs, weights, initial, states):
    """What the states leave, of each chain (batch, channels)."""
    before = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
    left = (CELLS[cell].step(inputs, before, weights) - states).abs()
    return left.flatten(1, -2).amax(dim=1) if left.ndim == 3 else left.amax(dim=(1, 2))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("max_iterations", [1, 2, 3, None])
@pytest.mark.parametrize("window", [16, 64])
def test_the_report_is_true(make_recurrence, cell, backend, max_iterations, window):
    """Few iterations leave a residual, and it is the one that the states have."""
    r = make_recurrence(cell, 2, 100, 3, std=1.5).to(dtype=torch.float32)
    tolerance = 1e-6
    found = call(
        r, backend=backend, algorithm="newton", window=window, max_iterations=max_iterations
    )
    left = residual_of(cell, r.inputs, r.weights, r.initial, found.states)
    assert found.iterations.shape == found.residual.shape == (2, 3)
    assert found.iterations.dtype == torch.int32
    assert int(found.iterations.max()) <= (max_iterations or window)
    assert int(found.iterations.min()) >= 1
    done = found.residual <= tolerance
    assert (left[done] <= tolerance).all()
    torch.testing.assert_close(found.residual[~done], left[~done], rtol=1e-2, atol=1e-6)
    assert bool(done.all()) == (max_iterations is None)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("max_iterations", [1, 4, None])
@pytest.mark.parametrize("window", [16, 1000])
def test_the_report_on_packed_sequences_is_of_their_own_steps(
    make_recurrence, cell, backend, max_iterations, window
):
    """Whatever they are padded to."""
    lengths = torch.tensor([70, 40, 50, 0, 1])
    bounds = [0, *lengths.cumsum(0).tolist()]
    r = make_recurrence(cell, 1, bounds[-1], 3, sequences=5, std=2.0).to(dtype=torch.float32)
    found = call(
        r, cu_seqlens=torch.tensor(bounds), backend=backend, algorithm="newton", window=window,
        max_iterations=max_iterations,
    )  # fmt: skip
    for i, (start, end) in enumerate(pairwise(bounds)):
        assert int(found.iterations[i].max()) <= min(end - start, window, max_iterations or 1000)
        if start == end:
            assert not found.residual[i].any()
            continue
        own = slice(start, end)
        left = residual_of(
            cell, r.inputs[:, own], r.weights, r.initial[i : i + 1], found.states[:, own]
        )[0]
        done = found.residual[i] <= 1e-6
        assert (left[done] <= 1e-6).all()
        torch.testing.assert_close(found.residual[i][~done], left[~done], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
@pytest.mark.parametrize("time", [1, 3, 40])
def test_a_first_state_that_is_far_off(make_recurrence, cell, backend, size, time):
    """The first guess is the state before; what is exact is so however far off that was."""
    r = make_recurrence(cell, 2, time, 5).to(dtype=torch.float32)
    initial = r.initial * size
    solved, in_turn = (
        newton_scan(
            r.inputs, r.weights, initial, cell=cell, backend=backend, algorithm=algorithm
        ).states
        for algorithm in ("newton", "sequential")
    )
    torch.testing.assert_close(solved, in_turn, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_steps_in_turn_report_no_iterations(make_recurrence, cell, backend):
    found = call(make_recurrence(cell, 2, 9, 3), backend=backend, algorithm="sequential")
    assert not found.iterations.any()
    assert not found.residual.any()


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_first_steps_of_a_window_are_exact(
    make_recurrence, recurrence_oracle, cell, iterations, backend
):
    r = make_recurrence(cell, 2, 60, 3, std=3.0)
    found = call(
        r, backend=backend, algorithm="newton", window=60, max_iterations=iterations,
        tolerance=1e-13,
    )  # fmt: skip
    wanted = recurrence_oracle(r)
    torch.testing.assert_close(
        found.states[:, :iterations], wanted[:, :iterations], rtol=1e-12, atol=1e-12
    )
    assert (found.states - wanted).abs().max() > 1e-6  # and the last ones are not


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize(("name", "std"), [("tanh", 3.0), ("gru", 2.0), ("lstm", 2.0)])
def test_stable_sequences_that_overflow_plain_newton(name, std, window, backend, algorithm):
    """Four thousand steps whose Jacobians are above one along the first guess."""
    generator = torch.Generator().manual_seed(1)
    f = CELLS[name]
    inputs = torch.randn(2, 4096, len(f.gates), 16, generator=generator)
    weights = torch.randn(len(f.rows), 16, generator=generator) * std
    weights = weights.clamp(-std, std) if name == "tanh" else weights
    options = {"backend": backend, "algorithm": algorithm, "window": window}
    found = newton_scan(inputs, weights, cell=name, **options)
    state = torch.zeros(2, *f.state_shape(16))
    with torch.no_grad():
        for t in range(4096):
            state = f.step(inputs[:, t], state, weights)
    assert (found.residual <= 1e-6).all()
    torch.testing.assert_close(found.states[:, -1], state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_calculations_are_float32_and_rounded_once(
    make_recurrence, recurrence_oracle, cell, dtype, backend, algorithm
):
    half = make_recurrence(cell, 2, 90, 5).to(dtype=dtype)
    half.weights = half.weights.detach().float().requires_grad_()
    truth = half.to(dtype=torch.float64)
    got = call(half, backend=backend, algorithm=algorithm).states
    wanted = recurrence_oracle(truth)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps, atol=2e-6)
    upstream = torch.randn_like(wanted).to(dtype)
    ours = torch.autograd.grad(got, half.tensors, upstream)
    true = torch.autograd.grad(wanted, truth.tensors, upstream.double())
    for own, tensor, right in zip(ours, half.tensors, true, strict=True):
        assert own.dtype == tensor.dtype
        assert (own.double() - right).abs().max() <= 8 * torch.finfo(dtype).eps * right.abs().max()


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
def test_strides(make_recurrence, recurrence_oracle, cell, backend, algorithm):
    """A projection with gates last, every other channel of something larger."""
    r = make_recurrence(cell, 2, 40, 3)
    spread = []
    for x in r.tensors:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x.detach()
        spread.append(wide.transpose(0, 1).contiguous().transpose(0, 1)[..., ::2].requires_grad_())
    got = newton_scan(*spread, cell=cell, backend=backend, algorithm=algorithm).states
    assert got.is_contiguous()
    wanted = recurrence_oracle(r)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted).flip(-1)
    torch.testing.assert_close(
        torch.autograd.grad(got, spread, upstream), torch.autograd.grad(wanted, r.tensors, upstream)
    )


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
def test_what_is_not_finite_is_seen(make_recurrence, cell, backend, algorithm):
    r = make_recurrence(cell, 1, 20, 2)
    inputs = r.inputs.detach().clone()
    inputs[0, 7, :, 1] = torch.nan
    found = newton_scan(inputs, r.weights, cell=cell, backend=backend, algorithm=algorithm)
    assert found.states[0, 7:, ..., 1].isnan().all()
    assert found.states[0, :7].isfinite().all()
    assert found.states[..., 0].isfinite().all()
    if algorithm == "newton":
        assert found.residual[0, 1].isnan()
        assert found.residual[0, 0] <= 1e-6


@pytest.mark.parametrize("std", [0.3, 3.0])
def test_a_free_choice_gives_up_on_what_is_too_steep(
    make_recurrence, recurrence_oracle, cell, std, monkeypatch
):
    """What short windows would take, the steps in turn do; what was exact is kept."""
    monkeypatch.setattr(passes, "LONG", {"cpu": 500})
    r = make_recurrence(cell, 2, 500, 3, std=std)
    windows, run = [], newton._iterate
    monkeypatch.setattr(newton, "_iterate", lambda *given: windows.append(0) or run(*given))
    found = call(r, backend="reference")
    torch.testing.assert_close(found.states, recurrence_oracle(r), rtol=1e-7, atol=1e-7)
    assert len(windows) == 1
    assert int(found.iterations.max()) > 2
    assert (found.residual <= 1e-13).all()


def test_a_chain_that_is_lost_is_not_iterated_on(make_recurrence, cell):
    """Nor does it hold up the others: windows are cut once, where it is lost."""
    r = make_recurrence(cell, 1, 2000, 3, std=0.3)
    inputs = r.inputs.detach().clone()
    inputs[0, 700, :, 1] = torch.nan
    plain = call(r, backend="reference", algorithm="newton")
    found = newton_scan(
        inputs, r.weights, r.initial, cell=cell, algorithm="newton", backend="reference"
    )
    assert found.states[0, 700:, ..., 1].isnan().all()
    assert found.states[0, :700].isfinite().all()
    torch.testing.assert_close(found.states[..., ::2], plain.states[..., ::2])
    assert int(found.iterations.max()) <= newton.PATIENCE


@pytest.mark.parametrize(("backend", "algorithm"), WAYS)
def test_numbers_that_are_marked_as_negative(make_recurrence, cell, backend, algorithm):
    """As the imaginary part of what is marked as conjugated is."""
    r = make_recurrence(cell, 2, 9, 3)
    marked = [torch.complex(t, -t).detach().conj().imag for t in r.tensors]
    assert all(t.is_neg() for t in marked)
    given = {"cell": cell, "backend": backend, "algorithm": algorithm}
    torch.testing.assert_close(
        newton_scan(*marked, **given).states, newton_scan(*r.tensors, **given).states.detach()
    )
