"""What is asked of a user's own cell before it is solved: its structure, shapes and dtypes."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent import (
    ConvergenceError,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    Elk,
    FunctionCell,
    GRUCell,
    LSTMCell,
    ParallelGRU,
    RecurrenceWarning,
    TanhCell,
    iterate,
    solve,
)
from ropewalk.blocks.recurrent.solvers import forget_warnings

SIZE = 4
WEIGHT = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 2
DECAY = torch.linspace(0.2, 0.9, SIZE)
INPUTS = torch.randn(2, 6, SIZE, generator=torch.Generator().manual_seed(1))


def dense(h, x):
    return torch.tanh(h @ WEIGHT.to(h).mT + x)


def diagonal(h, x):
    return torch.sin(DECAY.to(h) * h + x)


def mixing_channels(state, x):
    return torch.tanh(0.3 * state.cumsum(-1) + x[..., None, :])


def both(cell, words, inputs=INPUTS, **options):
    """Refused by `solve` with every kind of method, and by `iterate`, however often."""
    for method in ("auto", "sequential", "newton"):
        with pytest.raises(ValueError, match=words):
            solve(cell, inputs, method=method, **options)
    with pytest.raises(ValueError, match=words):
        iterate(cell, inputs, method="jacobi", iterations=1, **options)


def test_a_wrong_structure():
    words = "structure 'diagonal', on which gradients depend.*declare 'dense'.*check_cell"
    both(FunctionCell(dense, SIZE, structure="diagonal"), words)
    both(FunctionCell(dense, SIZE, structure="diagonal").double(), words, INPUTS.double())
    both(FunctionCell(mixing_channels, SIZE, structure="block2"), "structure 'block2'")


def test_a_declaration_that_becomes_wrong():
    cell = FunctionCell(dense, SIZE, structure="dense")
    solve(cell, INPUTS)
    cell.structure = "diagonal"
    both(cell, "structure 'diagonal'")


def test_it_is_asked_once_for_each_cell():
    calls = []

    def counted(h, x):
        calls.append(h.shape)
        return diagonal(h, x)

    cell = FunctionCell(counted, SIZE, structure="diagonal")
    counts = []
    for _ in range(3):
        calls.clear()
        solve(cell, INPUTS, method="sequential")
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2]


def test_no_steps_ask_nothing_and_the_next_call_does():
    cell = FunctionCell(dense, SIZE, structure="diagonal")
    solve(cell, INPUTS[:, :0])
    solve(cell, INPUTS[:0])
    both(cell, "structure 'diagonal'")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cells_that_are_right(dtype):
    """Also with a kink at zero, outside of which the next state is not a number, or packed."""
    cells = [
        FunctionCell(diagonal, SIZE, structure="diagonal"),
        FunctionCell(
            lambda h, x: 0.5 * torch.relu(h) + x,
            SIZE,
            structure="diagonal",
            jacobian=lambda h, x: 0.5 * (h >= 0).to(h),
        ),
        FunctionCell(lambda h, x: 0.1 * torch.sqrt(h) + x.abs(), SIZE, structure="diagonal"),
        FunctionCell(dense, SIZE, structure="dense"),
    ]
    for cell in cells:
        start = torch.full((2, SIZE), 0.1, dtype=dtype)
        assert solve(cell, INPUTS.to(dtype), start, method="sequential")[1].converged
        packed = torch.tensor([0, 0, 4, 6])
        initial = torch.full((3, SIZE), 0.1, dtype=dtype)
        solve(cell, INPUTS[:1].to(dtype), initial, cu_seqlens=packed, method="sequential")


def test_formulas():
    zeros = FunctionCell(
        diagonal, SIZE, structure="diagonal", jacobian=lambda h, x: torch.zeros_like(h)
    )
    both(zeros, "cell.jacobian: .* off along a random direction; mend the formula.*check_cell")
    square = FunctionCell(
        diagonal, SIZE, structure="diagonal", jacobian=lambda h, x: h[..., None] * WEIGHT
    )
    both(square, r"cell.jacobian: expected \(1, 6, 4\), \(\*batch, 4\) of .* got \(1, 6, 4, 4\)")


def test_a_function_without_forward_mode():
    """Is compared in reverse."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return torch.sin(x)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.cos(*ctx.saved_tensors)

    def cell(factor):
        return FunctionCell(
            lambda h, x: Sine.apply(DECAY * h + x),
            SIZE,
            structure="diagonal",
            jacobian=lambda h, x: factor * DECAY * torch.cos(DECAY * h + x),
        )

    assert solve(cell(1.0), INPUTS, method="newton")[1].converged
    both(cell(1.1), "cell.jacobian: ")


def test_inputs_of_another_size():
    cell = FunctionCell(dense, SIZE, structure="dense")
    both(cell, r"drives \(1, 3\), got RuntimeError.*input_size=", INPUTS[..., :3])
    solve(cell, INPUTS)
    both(cell, r"drives \(1, 3\), got RuntimeError", INPUTS[..., :3])
    projected = FunctionCell(dense, SIZE, structure="dense", project=nn.Linear(3, SIZE))
    both(projected, r"inputs: expected what project= takes, got \(2, 6, 4\)")


def test_states_of_another_shape_or_dtype():
    cell = FunctionCell(lambda h, x: dense(h, x)[..., :2], SIZE, structure="dense")
    both(cell, r"cell.step: expected a state of shape \(1, 4\) .* got \(1, 2\)")
    pair = FunctionCell(lambda h, x: (h, x), SIZE, structure="dense")
    both(pair, r"cell.step: .* got tuple")
    wide = FunctionCell(lambda h, x: dense(h, x).double(), SIZE, structure="dense")
    both(wide, r"cell.step: expected torch.float32.*got torch.float64.*\.to\(state.dtype\)")


def test_a_function_that_takes_no_leading_dimensions():
    module = nn.GRUCell(SIZE, SIZE)
    cell = FunctionCell(lambda h, x: module(x, h), SIZE, structure="dense")
    both(cell, r"any leading dimensions, .* wrap it: .*flatten.*unflatten")

    def wrapped(h, x):
        return module(x.flatten(0, -2), h.flatten(0, -2)).unflatten(0, h.shape[:-1])

    jacobian = torch.func.vmap(torch.func.vmap(torch.func.jacrev(lambda h, x: module(x, h))))
    cell = FunctionCell(wrapped, SIZE, structure="dense", jacobian=jacobian)
    expected = []
    state = torch.zeros(2, SIZE)
    for t in range(6):
        state = module(INPUTS[:, t], state)
        expected.append(state)
    states, info = solve(cell, INPUTS, method="sequential")
    assert info.converged
    torch.testing.assert_close(states, torch.stack(expected, 1))


def test_initial_states_of_more_digits_than_the_inputs():
    initial = torch.zeros(2, SIZE, dtype=torch.float64)
    words = r"initial_state: expected torch.float32 .* got torch.float64; .*\.to\(torch.float32\)"
    for cell in (FunctionCell(dense, SIZE, structure="dense"), TanhCell(SIZE)):
        both(cell, words, initial_state=initial)


def test_chance_in_a_step():
    def dropped(h, x):
        return diagonal(torch.nn.functional.dropout(h, 0.5), x)

    both(FunctionCell(dropped, SIZE, structure="diagonal"), "the same state at every call")


@pytest.mark.parametrize(
    "make",
    [TanhCell, GRUCell, LSTMCell, DiagonalGRUCell, DiagonalLSTMCell],
    ids=lambda c: c.__name__,
)
def test_weights_that_are_not_finite(make):
    """Before anything is calculated with them."""
    cell = make(SIZE) if make is TanhCell else make(SIZE, SIZE)
    with torch.no_grad():
        cell.weight_hh[0, 1] = float("nan")
    for method in ("auto", "newton", "sequential"):
        with pytest.raises(ValueError, match=r"cell.weight_hh: .* got nan at \(0, 1\)"):
            solve(cell, INPUTS, torch.ones(2, *cell.state_shape), method=method)


def test_weights_of_a_layer_that_are_not_finite():
    layer = ParallelGRU(SIZE, SIZE, method="elk")
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0")[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"cell.weight_hh: .* got inf at \(0, 0\)"):
        layer(INPUTS)


def test_weights_that_a_function_closes_over_are_not_finite():
    weight = torch.ones(SIZE)
    cell = FunctionCell(lambda h, x: weight * h + x, SIZE, structure="diagonal")
    solve(cell, INPUTS)
    weight[2] = float("nan")
    for packed in (None, torch.tensor([0, 0, 3, 6])):
        inputs = INPUTS if packed is None else INPUTS[:1]
        with pytest.raises(
            ValueError, match=r"after the first step: .* got nan at \(0, 2\); .*par"
        ):
            solve(cell, inputs, method="sequential", cu_seqlens=packed)


@pytest.mark.usefixtures("warned_freely")
def test_what_a_fall_back_is_called():
    """By what the states came from; errors advise another method than the one that failed."""
    cell = TanhCell(SIZE, True, bounded=False)
    with torch.no_grad():
        cell.weight_hh.fill_(3.0)
    inputs = 0.1 * torch.randn(1, 300, SIZE)
    words = r"jacobi: .*method='newton' or 'sequential'.*check_cell"
    with pytest.raises(ConvergenceError, match=words):
        solve(cell, inputs, method="jacobi", max_iterations=2, strict=True)
    with pytest.raises(ConvergenceError, match=r"newton: .*, method='sequential'"):
        solve(cell, inputs, method="newton", max_iterations=1, strict=True)
    expected = solve(cell, inputs, method="sequential")[0]
    info = solve(cell, inputs, method="jacobi", max_iterations=1)[1]
    assert info.method == "jacobi"
    assert info.sequential_from
    states, info = solve(cell, inputs, method=Elk(adaptive=False), max_iterations=1)
    assert (info.method, info.sequential_from, info.iterations) == ("sequential", 0, 0)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_the_warning_names_a_possible_cause():
    forget_warnings()
    with pytest.warns(RecurrenceWarning, match=r"elk did not converge; from step 0 .*check_cell"):
        solve(TanhCell(SIZE), INPUTS, method=Elk(adaptive=False), max_iterations=1)
