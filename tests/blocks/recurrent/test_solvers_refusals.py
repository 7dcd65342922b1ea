"""What solvers refuse, before any work is done."""

import pytest
import torch

from ropewalk.blocks.recurrent.cells import FunctionCell, GRUCell, TanhCell
from ropewalk.blocks.recurrent.solvers import iterate, named, solve

INPUTS = torch.zeros(2, 6, 3)
PACKED = torch.zeros(1, 6, 3)
NAN = INPUTS.clone().index_fill_(1, torch.tensor([4]), float("nan"))
INF = INPUTS.clone().index_fill_(2, torch.tensor([1]), float("inf"))


@pytest.fixture
def cell():
    return GRUCell(3, 5)


BAD = [
    ({"inputs": NAN}, ValueError, r"inputs: expected finite numbers, got nan at \(0, 4, 0\)"),
    ({"inputs": INF}, ValueError, r"inputs: expected finite numbers, got inf at \(0, 0, 1\)"),
    ({"inputs": INPUTS[0]}, ValueError, r"\(batch, time, dim\), got \(6, 3\).*inputs\[None\]"),
    ({"inputs": INPUTS.long()}, ValueError, "floating-point dtype, got torch.int64"),
    ({"inputs": "x"}, TypeError, "inputs: expected a tensor, got str"),
    ({"inputs": INPUTS[..., :2]}, ValueError, r"\(..., 3\), got \(2, 6, 2\)"),
    ({"initial_state": torch.zeros(2, 4)}, ValueError, r"initial_state: expected \(2, 5\)"),
    ({"initial_state": torch.zeros(5)}, ValueError, r"initial_state: expected \(2, 5\)"),
    ({"initial_state": torch.full((2, 5), torch.nan)}, ValueError, "initial_state: .*finite"),
    ({"initial_state": torch.zeros(2, 5).long()}, ValueError, "initial_state: .*floating-point"),
    ({"initial_state": 0.0}, TypeError, "initial_state: expected a tensor, got float"),
    ({"guess": torch.zeros(2, 5)}, ValueError, r"guess: expected \(2, 6, 5\), one for each step"),
    ({"guess": torch.full((2, 6, 5), torch.inf)}, ValueError, "guess: expected finite"),
    ({"cu_seqlens": torch.tensor([0, 6])}, ValueError, "cu_seqlens: expected a batch of 1"),
]
PACKED_BAD = [
    (torch.tensor([0, 5]), ValueError, "must end at the number of tokens, 6, got 5"),
    (torch.tensor([1, 6]), ValueError, "must begin with 0"),
    (torch.tensor([0, 4, 2, 6]), ValueError, "must not decrease"),
    (torch.tensor([0.0, 6.0]), TypeError, "int32 or int64"),
    (torch.tensor([[0, 6]]), ValueError, "shape"),
    ([0, 6], TypeError, "tensor"),
]
OPTIONS_BAD = [
    ({"window": 0}, ValueError, "window: expected an integer ≥ 1, got 0"),
    ({"window": 2.5}, TypeError, "window"),
    ({"max_iterations": 0}, ValueError, "max_iterations: expected an integer ≥ 1, got 0"),
    ({"max_iterations": True}, TypeError, "max_iterations"),
    ({"tolerance": 0.0}, ValueError, "tolerance: expected a finite number > 0, got 0.0"),
    ({"tolerance": -1e-3}, ValueError, "tolerance"),
    ({"tolerance": float("nan")}, ValueError, "tolerance"),
    ({"tolerance": 1e-12}, ValueError, "at least 1.19e-07, what torch.float32 can tell apart"),
    ({"tolerance": "small"}, TypeError, "tolerance"),
    ({"strict": 1}, TypeError, "strict: expected True or False"),
    ({"gradient": "exact"}, ValueError, "one of implicit, diagonal, got 'exact'"),
    ({"method": 3}, TypeError, "method: expected a name or an object"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_inputs_and_states(cell, arguments, error, words):
    arguments = {"inputs": INPUTS, **arguments}
    with pytest.raises(error, match=words):
        solve(cell, **arguments)
    with pytest.raises(error, match=words):
        iterate(cell, method="newton", iterations=1, **arguments)


@pytest.mark.parametrize(("cu_seqlens", "error", "words"), PACKED_BAD)
def test_boundaries(cell, cu_seqlens, error, words):
    with pytest.raises(error, match=words):
        solve(cell, PACKED, cu_seqlens=cu_seqlens)
    with pytest.raises(error, match=words):
        iterate(cell, PACKED, method="newton", iterations=1, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS_BAD)
def test_options(cell, options, error, words):
    with pytest.raises(error, match=words):
        solve(cell, INPUTS, **options)


def test_initial_states_of_packed_sequences(cell):
    cu = torch.tensor([0, 2, 2, 6])
    with pytest.raises(ValueError, match=r"initial_state: expected \(3, 5\), a state for each seq"):
        solve(cell, PACKED, torch.zeros(1, 5), cu_seqlens=cu)


def test_unknown_methods_are_told_the_known_ones(cell):
    names = "auto, newton, quasi, jacobi, picard, fixed, first_order, clip, scale, elk, sequential"
    for call in (lambda: solve(cell, INPUTS, method="neuton"), lambda: named("neuton")):
        with pytest.raises(ValueError, match=f"one of {names}, got 'neuton'"):
            call()


@pytest.mark.parametrize("cell", [torch.nn.GRU(3, 5), GRUCell, torch.tanh, None])
def test_what_is_no_cell(cell):
    with pytest.raises(TypeError, match=r"cell: expected a Cell, got .*FunctionCell"):
        solve(cell, INPUTS)
    with pytest.raises(TypeError, match="cell: expected a Cell"):
        iterate(cell, INPUTS, method="newton", iterations=1)


def test_weights_that_are_not_finite(cell):
    with torch.no_grad():
        cell.weight_ih[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"cell.project\(inputs\): .* look at the cell's weights"):
        solve(cell, INPUTS)


@pytest.mark.parametrize("method", ["auto", "newton", "sequential", "elk"])
@pytest.mark.parametrize("make", [TanhCell, lambda n: TanhCell(n, True), lambda n: GRUCell(n, n)])
def test_recurrent_weights_that_are_not_finite(make, method):
    cell = make(3)
    with torch.no_grad():
        cell.weight_hh[0, 1] = float("inf")
    with pytest.raises(ValueError, match=r"cell\.weight_hh: .* got inf at \(0, 1\)"):
        solve(cell, INPUTS, method=method)


def test_a_projection_that_loses_time():
    cell = FunctionCell(torch.add, 3, structure="diagonal", project=lambda x: x[:, 1:])
    with pytest.raises(ValueError, match=r"cell.project: expected \(2, 6, …\), got \(2, 5, 3\)"):
        solve(cell, INPUTS)


def test_half_precision_cannot_have_a_tolerance_below_its_rounding():
    cell = TanhCell(3).bfloat16()
    with pytest.raises(ValueError, match=r"at least 0\.0312, what torch\.bfloat16"):
        solve(cell, INPUTS.bfloat16(), tolerance=0.01)


def test_there_is_nothing_to_look_at_on_the_meta_device():
    cell = TanhCell(3, device="meta")
    with pytest.raises(RuntimeError, match="numbers to look at, got the meta device"):
        solve(cell, INPUTS.to("meta"))
    states = iterate(cell, INPUTS.to("meta"), method="newton", iterations=2)
    assert states.shape == (2, 6, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "newton", "iterations": 0}, ValueError, "≥ 1"),
        ({"method": "newton", "iterations": 1.5}, TypeError, "integer"),
        ({"method": "auto", "iterations": 1}, ValueError, "got 'auto'; try 'newton'"),
        ({"method": "sequential", "iterations": 1}, ValueError, "got 'sequential'; use solve"),
    ],
)
def test_iterations(cell, options, error, words):
    with pytest.raises(error, match=words):
        iterate(cell, INPUTS, **options)
