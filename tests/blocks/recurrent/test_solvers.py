"""Every method finds what stepping through time finds, and says truly how well."""

import pytest
import torch

from ropewalk.blocks.recurrent.cells import FunctionCell, GRUCell
from ropewalk.blocks.recurrent.solvers import (
    METHODS,
    Clip,
    Elk,
    Fixed,
    Newton,
    Scale,
    Sequential,
    iterate,
    solve,
)

F64 = torch.float64
CELLS = ["tanh", "tanh diagonal", "gru diagonal", "lstm diagonal", "gru", "lstm", "function"]
WAYS = ["auto", *METHODS, Fixed(diagonalise=True), Clip(0.5), Scale(0.1), Elk(0.1, False)]
ITERATIONS = [name for name in METHODS if name not in ("sequential", "elk")]
RAGGED = [0, 9, 9, 10, 24]
ragged = pytest.mark.parametrize("cu", [None, RAGGED], ids=["batch", "ragged"])
every_cell = pytest.mark.parametrize("name", CELLS)


def true_residual(cell, inputs, initial, cu, states):
    """Of what was returned, step by step and in float64."""
    cell_states, h0 = states.detach(), initial
    drive = cell.project(inputs).detach()
    worst = 0.0
    starts = {} if cu is None else {int(a): i for i, a in list(enumerate(cu[:-1]))}
    for t in range(states.shape[1]):
        if cu is None:
            before = h0 if t == 0 else cell_states[:, t - 1]
        else:
            before = h0[starts[t]][None] if t in starts else cell_states[:, t - 1]
        made = cell.step(before, drive[:, t]).detach().double()
        h = cell_states[:, t].double()
        worst = max(worst, float(((h - made).abs() / h.abs().clamp_min(1)).max()))
    return worst


@every_cell
@ragged
@pytest.mark.usefixtures("warned_freely")
def test_every_method_is_sequential(make_cell, draw, unrolled, name, cu):
    cell = make_cell(name)
    inputs, initial, cu = draw(cell, cu=cu)
    expected = unrolled(cell, inputs, initial, cu)
    for way in WAYS:
        states, info = solve(cell, inputs, initial, method=way, cu_seqlens=cu)
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5, msg=str(way))
        assert info.converged, way
        true = true_residual(cell, inputs, initial, cu, states)
        assert abs(info.residual - true) <= 3e-7, way
        assert info.residual <= info.tolerance == 2e-6
        assert info.windows >= 1
        asked = "sequential" if info.sequential_from == 0 else getattr(way, "name", way)
        assert info.method == asked or way == "auto"
        if info.sequential_from is None and not info.failed:
            assert info.total_iterations >= info.iterations
            assert (info.iterations == 0) == (info.method == "sequential")


@every_cell
def test_float64(make_cell, draw, unrolled, name):
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64)
    states, info = solve(cell, inputs, initial, method="newton")
    torch.testing.assert_close(states, unrolled(cell, inputs, initial), rtol=0, atol=1e-12)
    assert info.converged
    assert info.tolerance == 1e-12


@pytest.mark.parametrize("name", CELLS[:-1])  # the function's parameters are of one dtype
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["auto", "newton", "sequential"])
def test_half_precision(make_cell, draw, unrolled, name, dtype, method):
    cell = make_cell(name).to(dtype)
    inputs, initial, _ = draw(cell, dtype)
    states, info = solve(cell, inputs, initial, method=method)
    assert states.dtype == dtype
    assert info.converged
    exact = unrolled(cell.double(), inputs.double(), initial.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(states.double(), exact, rtol=0, atol=8 * eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_functions_in_half_precision_compute_in_it(dtype):
    cell = FunctionCell(lambda h, x: torch.tanh(h / 2 + x), 3, structure="diagonal")
    inputs = torch.randn(2, 9, 3).to(dtype)
    for method in ("newton", "sequential"):
        states, info = solve(cell, inputs, method=method)
        assert states.dtype == dtype
        assert info.converged


@every_cell
@pytest.mark.usefixtures("warned_freely")
@pytest.mark.parametrize("time", [0, 1])
def test_no_time_and_one_step(make_cell, draw, name, time):
    cell = make_cell(name)
    inputs, initial, _ = draw(cell, time=time)
    for way in WAYS:
        states, info = solve(cell, inputs, initial, method=way)
        assert states.shape == (2, time, *cell.state_shape)
        assert info.converged
        assert info.windows == time
        if time:
            expected = cell.step(initial, cell.project(inputs)[:, 0])
            torch.testing.assert_close(states[:, 0], expected)
    if not time:
        states.sum().backward()  # nothing to differentiate, and no error
        empty = torch.tensor([0, 0, 0])
        states, _ = solve(cell, inputs[:1], cu_seqlens=empty, method="newton")
        assert states.shape == (1, 0, *cell.state_shape)


@every_cell
@ragged
def test_the_first_k_states_are_exact_after_k_iterations(make_cell, draw, unrolled, name, cu):
    cell = make_cell(name, F64)
    inputs, initial, cu = draw(cell, F64, cu=cu)
    expected = unrolled(cell, inputs, initial, cu)
    guess = 3 * torch.randn_like(expected)
    starts = [0] if cu is None else [0, 9, 10]
    for method in [*ITERATIONS, Fixed(True), Clip(0.3), Scale(0.9)]:
        for k in (1, 2, 5):
            states = iterate(
                cell, inputs, initial, method=method, iterations=k, guess=guess, cu_seqlens=cu
            )
            for start in starts:
                stop = start + min(k, 1) if start == 9 else start + k
                assert torch.allclose(
                    states[:, start:stop], expected[:, start:stop], rtol=0, atol=1e-9
                ), (method, k)


def test_after_as_many_iterations_as_steps_all_is_exact(make_cell, draw, unrolled):
    cell = make_cell("gru", F64)
    inputs, initial, _ = draw(cell, F64, time=7)
    for method in ITERATIONS:
        states = iterate(cell, inputs, initial, method=method, iterations=7)
        torch.testing.assert_close(states, unrolled(cell, inputs, initial))


def test_newton_converges_quadratically_and_quasi_linearly(make_cell, draw, unrolled):
    cell = make_cell("gru", F64)
    inputs, initial, _ = draw(cell, F64, time=64)
    expected = unrolled(cell, inputs, initial)

    def error(method, k):
        states = iterate(cell, inputs, initial, method=method, iterations=k)
        return float((states - expected).detach().abs().max())

    def errors(method):
        return [error(method, k) for k in range(1, 6)]

    newton, quasi = errors("newton"), errors("quasi")
    assert newton[4] < 1e-12 < quasi[4]
    assert newton[3] < 10 * newton[2] ** 2


def test_a_guess_is_where_iterations_start(make_cell, draw):
    cell = make_cell("gru diagonal")
    inputs, initial, _ = draw(cell)
    states, far = solve(cell, inputs, initial, method="newton")
    _, near = solve(cell, inputs, initial, method="newton", guess=states.detach())
    assert near.iterations <= 1 < far.iterations
    _, chosen = solve(cell, inputs, initial, guess=states.detach())
    assert (chosen.method, chosen.backend) == ("newton", "torch")


def test_auto_takes_the_fused_scan_for_built_in_cells(make_cell, draw):
    for name in CELLS:
        cell = make_cell(name)
        inputs, initial, _ = draw(cell)
        _, info = solve(cell, inputs, initial)
        assert info.backend == ("newton_scan" if "diagonal" in name else "torch")


@pytest.mark.parametrize(
    ("size", "batch", "time", "method"),
    [
        (4, 1, 255, "sequential"),
        (4, 1, 256, "newton"),
        (21, 1, 256, "sequential"),
        (16, 2, 256, "newton"),
        (16, 3, 256, "sequential"),
    ],
)
def test_auto_takes_what_is_fastest_for_dense_cells_on_a_cpu(size, batch, time, method):
    cell = GRUCell(3, size)
    _, info = solve(cell, torch.randn(batch, time, 3))
    assert (info.method, info.sequential_from, info.backend) == (method, None, "torch")


@torch.no_grad()
def test_auto_gives_up_newton_early_and_silently():
    """Warnings are errors here. The cell is chaotic: other rounding would lead somewhere else."""
    torch.manual_seed(0)
    cell = GRUCell(3, 8, bounded=False)
    cell.weight_hh.normal_(0, 2)
    inputs = torch.randn(1, 4096, 3)
    states, info = solve(cell, inputs, strict=True)
    assert info.converged
    assert len(info.failed) == 1
    assert (info.method, info.sequential_from, info.windows) == ("sequential", 0, 1)
    assert torch.equal(states, solve(cell, inputs, method="sequential")[0])


def test_sizes_strides_and_single_batches(make_cell, draw, unrolled):
    cell = make_cell("lstm diagonal")
    inputs, initial, _ = draw(cell, time=33)
    strided = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    expected = unrolled(cell, inputs, initial)
    for method in ("auto", "newton"):
        states, _ = solve(cell, strided, initial, method=method)
        torch.testing.assert_close(states, expected)
        states, _ = solve(cell, inputs[:1], initial[:1], method=method, window=7)
        torch.testing.assert_close(states, expected[:1])


@every_cell
def test_an_empty_batch(make_cell, name):
    cell = make_cell(name)
    inputs = torch.zeros(0, 5, 3, requires_grad=True)
    for method in ("auto", "newton", "elk", "sequential"):
        states, info = solve(cell, inputs, method=method)
        assert states.shape == (0, 5, *cell.state_shape)
        assert info.converged
        states.sum().backward()


def test_zeros_where_no_initial_state_is_given(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    expected, _ = solve(cell, inputs, torch.zeros_like(initial), method="newton")
    assert torch.equal(solve(cell, inputs, method="newton")[0], expected)


@pytest.mark.parametrize("device_dtype", [torch.bfloat16])
def test_under_autocast_only_the_projection_is_narrow(make_cell, draw, device_dtype):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    expected, _ = solve(cell, inputs, initial, method="newton")
    with torch.autocast("cpu", dtype=device_dtype):
        states, info = solve(cell, inputs, initial, method="newton")
    assert states.dtype == device_dtype
    assert info.converged
    torch.testing.assert_close(states.float(), expected, rtol=0, atol=0.03)


def test_objects_and_names_are_the_same(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    for way, name in ((Newton(), "newton"), (Clip(), "clip"), (Sequential(), "sequential")):
        by_object, _ = solve(cell, inputs, initial, method=way)
        assert torch.equal(by_object, solve(cell, inputs, initial, method=name)[0])
