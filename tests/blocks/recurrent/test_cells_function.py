"""Functions as cells, and what `check_cell` finds in them."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import Cell, FunctionCell, check_cell

SIZE = 4
DECAY = torch.linspace(0.2, 0.9, SIZE)
MIX = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 2


def diagonal(h, x):
    return torch.sin(DECAY.to(h) * h + x)


def dense(h, x):
    return torch.tanh(h @ MIX.to(h).mT + x)


def block2(state, x):
    c, h = state.unbind(-2)
    c = torch.tanh(DECAY.to(c) * c + h + x)
    return torch.stack([c, c * torch.sigmoid(h)], -2)


FUNCTIONS = {"diagonal": diagonal, "dense": dense, "block2": block2}
INPUTS = torch.randn(2, 5, SIZE)


@pytest.mark.parametrize("structure", FUNCTIONS)
def test_jacobians_are_computed(structure):
    cell = FunctionCell(FUNCTIONS[structure], SIZE, structure=structure)
    check_cell(cell, INPUTS)
    check_cell(cell, INPUTS.double())


def test_a_formula_is_taken():
    cell = FunctionCell(
        diagonal,
        state_shape=(SIZE,),
        structure="diagonal",
        jacobian=lambda h, x: torch.cos(DECAY * h + x) * DECAY,
    )
    check_cell(cell, INPUTS)
    assert "formula" in repr(cell)


def test_what_a_cell_shows():
    state = torch.randn(3, 2, SIZE)
    assert torch.equal(FunctionCell(block2, SIZE, structure="block2").output(state), state[:, 1])
    assert torch.equal(
        FunctionCell(dense, SIZE, structure="dense", output=torch.neg).output(state), -state
    )


def test_modules_bring_their_parameters():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(SIZE, SIZE)

        def forward(self, h, x):
            return torch.tanh(self.linear(h) + x)

    cell = FunctionCell(Step(), SIZE, structure="dense", project=nn.Linear(3, SIZE), input_size=3)
    assert len(list(cell.parameters())) == 4
    check_cell(cell)


WRONG = {
    "structure 'diagonal'.*no derivative outside": {"function": dense, "structure": "diagonal"},
    "structure 'block2'.*no derivative outside": {
        "function": lambda s, x: torch.tanh(s.cumsum(-1) + x[..., None, :]),
        "structure": "block2",
    },
    "jacobian: expected autograd's derivatives": {
        "function": diagonal,
        "structure": "diagonal",
        "jacobian": lambda h, x: torch.cos(h + x),
    },
    r"jacobian: expected \(5, 4\), got": {
        "function": diagonal,
        "structure": "diagonal",
        "jacobian": lambda h, x: torch.zeros(5, 4, 4),
    },
    r"step: expected a state \(5, 4\)": {
        "function": lambda h, x: h[..., :2],
        "structure": "diagonal",
    },
    "step: expected torch.float32": {
        "function": lambda h, x: diagonal(h, x).double(),
        "structure": "diagonal",
    },
    "step: expected finite states": {
        "function": lambda h, x: torch.log(-h.abs()),
        "structure": "diagonal",
    },
    "step: expected finite derivatives": {
        "function": lambda h, x: torch.sqrt(0 * h),
        "structure": "diagonal",
    },
    "step: expected the same at every call": {
        "function": lambda h, x: h + torch.rand_like(h),
        "structure": "diagonal",
    },
    "step: expected each batch entry by itself": {
        "function": lambda h, x: h - h.flatten(0, -2).mean(0) if h.ndim > 1 else h * 1,
        "structure": "diagonal",
    },
    r"project: expected the same at every call, .*cell\.eval\(\)": {
        "function": diagonal,
        "structure": "diagonal",
        "project": nn.Dropout(0.5),
    },
    "project: expected each time by itself": {
        "function": diagonal,
        "structure": "diagonal",
        "project": lambda x: x - x.mean(1, keepdim=True),
    },
    r"project: expected \(2, 5, …\)": {
        "function": diagonal,
        "structure": "diagonal",
        "project": lambda x: x.mean(1),
    },
    "project: expected finite numbers": {
        "function": diagonal,
        "structure": "diagonal",
        "project": lambda x: x / 0,
    },
}


@pytest.mark.parametrize("words", WRONG)
def test_check_cell_finds_what_is_wrong(words):
    options = dict(WRONG[words])
    cell = FunctionCell(options.pop("function"), SIZE, **options)
    with pytest.raises(ValueError, match=words):
        check_cell(cell, INPUTS)


def test_check_cell_wants_a_cell_and_inputs():
    with pytest.raises(TypeError, match="expected a Cell, got function; make one"):
        check_cell(diagonal)
    cell = FunctionCell(diagonal, SIZE, structure="diagonal")
    with pytest.raises(ValueError, match="tells no input_size"):
        check_cell(cell)
    with pytest.raises(ValueError, match=r"\(batch, time, dim\)"):
        check_cell(cell, torch.zeros(2, SIZE))
    with pytest.raises(ValueError, match="samples"):
        check_cell(cell, INPUTS, samples=0)

    triangular = FunctionCell(diagonal, SIZE, structure="diagonal")
    triangular.structure = "triangular"
    with pytest.raises(ValueError, match="one of diagonal, block2, dense, got 'triangular'"):
        check_cell(triangular, INPUTS)
    with pytest.raises(ValueError, match="got None; set it on the class"):
        check_cell(Cell())
    shapeless = FunctionCell(diagonal, SIZE, structure="diagonal")
    shapeless.state_shape = (2, SIZE)
    with pytest.raises(ValueError, match=r"state_shape: expected \(size,\)"):
        check_cell(shapeless, INPUTS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((3,), {"structure": "dense"}, TypeError, "function: expected a function"),
        ((dense, 4), {"structure": "dense", "jacobian": 3}, TypeError, "jacobian"),
        ((dense, 4), {"structure": "dense", "project": 3}, TypeError, "project"),
        ((dense, 4), {"structure": "dense", "output": 3}, TypeError, "output"),
        ((dense, 4), {"structure": "banded"}, ValueError, "one of diagonal, block2, dense"),
        ((dense, 0), {"structure": "dense"}, ValueError, "≥ 1"),
        ((dense,), {"structure": "dense"}, TypeError, "either state_size or state_shape"),
        ((dense, 4), {"structure": "dense", "state_shape": (4,)}, TypeError, "either"),
        ((dense,), {"structure": "dense", "state_shape": (2, 4)}, ValueError, r"\(size,\)"),
        ((dense,), {"structure": "block2", "state_shape": (4,)}, ValueError, r"\(2, channels\)"),
        ((dense,), {"structure": "dense", "state_shape": 4}, TypeError, "tuple of integers"),
        ((dense, 4), {"structure": "dense", "input_size": 0}, ValueError, "≥ 1"),
    ],
)
def test_what_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=words):
        FunctionCell(*arguments, **options)


def test_inputs_of_a_declared_size():
    cell = FunctionCell(dense, SIZE, structure="dense", input_size=SIZE)
    with pytest.raises(ValueError, match=r"\(..., 4\), got \(1, 2, 3\)"):
        cell.project(torch.zeros(1, 2, 3))
