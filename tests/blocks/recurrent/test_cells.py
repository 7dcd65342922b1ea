"""Cells against torch's own, against each other, and against their declarations."""

import copy

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import (
    DiagonalGRUCell,
    DiagonalLSTMCell,
    GRUCell,
    LSTMCell,
    TanhCell,
    check_cell,
)
from ropewalk.kernels.newton_scan import newton_scan

F64 = torch.float64

CELLS = {
    "tanh": lambda **options: TanhCell(5, input_dim=3, **options),
    "tanh diagonal": lambda **options: TanhCell(5, True, input_dim=3, **options),
    "gru diagonal": lambda **options: DiagonalGRUCell(3, 5, **options),
    "lstm diagonal": lambda **options: DiagonalLSTMCell(3, 5, **options),
    "gru": lambda **options: GRUCell(3, 5, **options),
}
DENSE_LSTM = {"lstm": lambda **options: LSTMCell(3, 5, **options)}
ALL = {**CELLS, **DENSE_LSTM}
DIAGONAL = [name for name in CELLS if "diagonal" in name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_cells_are_what_they_declare(name, bias, dtype):
    cell = ALL[name](bias=bias, dtype=dtype)
    check_cell(cell)
    assert [p.requires_grad for p in cell.parameters()] == [True] * len(list(cell.parameters()))


@pytest.mark.parametrize("name", CELLS)
def test_unbounded_cells_are_what_they_declare(name):
    cell = CELLS[name](bounded=False, dtype=F64)
    with torch.no_grad():
        cell.weight_hh.normal_(0, 2)
    check_cell(cell)


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_tanh_cell_is_torchs(bias):
    cell, theirs = TanhCell(6, input_dim=4, bounded=False, bias=bias), nn.RNNCell(4, 6, bias=bias)
    cell.load_state_dict(theirs.state_dict())
    x, h = torch.randn(7, 4), torch.randn(7, 6)
    torch.testing.assert_close(cell.step(h, cell.project(x)), theirs(x, h))


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_gru_is_torchs(bias):
    cell, theirs = GRUCell(4, 6, bounded=False, bias=bias), nn.GRUCell(4, 6, bias=bias)
    cell.load_state_dict(theirs.state_dict())
    x, h = torch.randn(7, 4), torch.randn(7, 6)
    torch.testing.assert_close(cell.step(h, cell.project(x)), theirs(x, h))


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_lstm_is_torchs(bias):
    cell, theirs = LSTMCell(4, 6, bias=bias), nn.LSTMCell(4, 6, bias=bias)
    cell.load_state_dict(theirs.state_dict())
    x, c, h = torch.randn(7, 4), torch.randn(7, 6), torch.randn(7, 6)
    state = cell.step(torch.cat([c, h], -1), cell.project(x))
    h_new, c_new = theirs(x, (h, c))
    torch.testing.assert_close(state, torch.cat([c_new, h_new], -1))
    assert torch.equal(cell.output(state), state[:, 6:])


def test_a_diagonal_gru_is_a_dense_one_of_diagonal_matrices():
    diagonal, dense = (kind(4, 6, bounded=False) for kind in (DiagonalGRUCell, GRUCell))
    state = diagonal.state_dict()
    state["weight_hh"] = torch.cat([torch.diag(row) for row in state["weight_hh"]])
    dense.load_state_dict(state)
    x, h = torch.randn(7, 4), torch.randn(7, 6)
    drive = diagonal.project(x)
    torch.testing.assert_close(diagonal.step(h, drive), dense.step(h, dense.project(x)))
    torch.testing.assert_close(
        torch.diag_embed(diagonal.jacobian(h, drive)), dense.jacobian(h, drive)
    )


def test_the_diagonal_lstm_is_its_equations():
    cell = DiagonalLSTMCell(3, 1, bounded=False, dtype=F64)
    x, (c, h) = torch.randn(3, dtype=F64), torch.randn(2, 1, dtype=F64)
    f_in, z_in, o_in = cell.weight_ih @ x + cell.bias_ih
    a_f, a_z, a_o, c_f, c_o = cell.weight_hh[:, 0]
    f = 1 / (1 + torch.exp(-(f_in + a_f * h + c_f * c)))
    c_new = f * c + (1 - f) * torch.tanh(z_in + a_z * h)
    h_new = torch.tanh(c_new) / (1 + torch.exp(-(o_in + a_o * h + c_o * c_new)))
    state = cell.step(torch.stack([c, h]), cell.project(x))
    torch.testing.assert_close(state, torch.stack([c_new, h_new]))
    assert torch.equal(cell.output(state), state[1])


@pytest.mark.parametrize("name", DIAGONAL)
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_scan_computes_the_same_cell(name, bounded, bias):
    cell = CELLS[name](bounded=bounded, bias=bias, dtype=F64)
    drive = cell.project(torch.randn(2, 9, 3, dtype=F64))
    state, states = torch.zeros(2, *cell.state_shape, dtype=F64), []
    for t in range(9):
        state = cell.step(state, drive[:, t])
        states.append(state)
    scanned = newton_scan(drive, cell.kernel_weights(), cell=cell.kernel).states
    torch.testing.assert_close(scanned, torch.stack(states, 1))


@pytest.mark.parametrize("name", ALL)
def test_any_leading_dimensions_and_strides(name):
    cell = ALL[name](dtype=F64)
    x = torch.randn(3, 4, 2, dtype=F64).transpose(0, 2)
    h = torch.randn(*cell.state_shape, 4, 2, dtype=F64).movedim((-1, -2), (0, 1))
    drive = cell.project(x)
    together, jacobian = cell.step(h, drive), cell.jacobian(h, drive)
    for i in range(2):
        for j in range(4):
            alone = cell.project(x[i, j].contiguous())
            torch.testing.assert_close(together[i, j], cell.step(h[i, j].contiguous(), alone))
            torch.testing.assert_close(jacobian[i, j], cell.jacobian(h[i, j], alone))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_in_half_precision_and_states_in_float32(name, dtype):
    cell = ALL[name](dtype=dtype)
    twin = copy.deepcopy(cell).float()
    drive, h = torch.randn(2, cell.gates, 5), torch.randn(2, *cell.state_shape)
    torch.testing.assert_close(cell.step(h, drive), twin.step(h, drive))
    torch.testing.assert_close(cell.jacobian(h, drive), twin.jacobian(h, drive))
    assert cell.step(h.to(dtype), drive.to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_modules_are_modules(name):
    cell = ALL[name]()
    twin = ALL[name]()
    twin.load_state_dict(cell.state_dict())
    x, h = torch.randn(2, 3), torch.randn(2, *cell.state_shape)
    expected = cell.step(h, cell.project(x))
    for other in (twin, copy.deepcopy(cell)):
        assert torch.equal(other.step(h, other.project(x)), expected)
    assert set(dict(cell.named_parameters())) <= {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    meta = ALL[name](device="meta")
    made = meta.step(h.to("meta"), meta.project(x.to("meta")))
    assert made.is_meta
    assert made.shape == expected.shape
    restored = meta.to_empty(device="cpu")
    restored.reset_parameters()
    check_cell(restored)
    assert str(cell.hidden_size) in repr(cell)


@pytest.mark.parametrize("name", ALL)
def test_compiled_steps(name):
    cell = ALL[name]()
    x, h = torch.randn(2, 3), torch.randn(2, *cell.state_shape)

    def both(x, h):
        drive = cell.project(x)
        return cell.step(h, drive), cell.jacobian(h, drive)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, h), both(x, h), strict=True):
        torch.testing.assert_close(got, expected)


def test_tanh_takes_inputs_of_its_own_size_unless_told():
    assert TanhCell(4).input_size == 4
    assert TanhCell(4).structure == "dense"
    assert TanhCell(4, diagonal=True).structure == "diagonal"
    assert TanhCell(4).kernel is None
    with pytest.raises(TypeError, match="no kernel"):
        TanhCell(4).kernel_weights()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: TanhCell(0), ValueError, "≥ 1"),
        (lambda: TanhCell(3, 4), TypeError, "diagonal: expected True or False"),
        (lambda: TanhCell(3, bounded=1), TypeError, "bounded: expected True or False"),
        (lambda: GRUCell(3, 2.0), TypeError, "integer"),
        (lambda: DiagonalGRUCell(3, 0), ValueError, "≥ 1"),
        (lambda: DiagonalGRUCell(3, 2, bias=None), TypeError, "bias"),
        (lambda: DiagonalLSTMCell(0, 2), ValueError, "≥ 1"),
        (lambda: LSTMCell(3, 2, dtype=torch.int64), ValueError, "floating-point"),
        (lambda: GRUCell(3, 2).project(torch.zeros(4)), ValueError, r"\(..., 3\), got \(4,\)"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
