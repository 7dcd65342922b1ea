"""Cells whose parameters are a layer's.

A layer has all of its parameters itself, under the names of `nn.GRU`, `weight_ih_l0` and so on, so
that checkpoints fit and `named_parameters`, `torch.func.functional_call` and `to_empty` see them
once. Formulas are the cells'. So a layer has cells that look up their parameters in it each time.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ropewalk.blocks.recurrent.cells import (
    Cell,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    GRUCell,
    LSTMCell,
    TanhCell,
)

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _borrowed(name: str) -> Any:
    """A parameter of the layer; None where it has none."""

    def find(cell: "Borrowing") -> Tensor | None:
        return getattr(cell._layer[0], name + cell._suffix, None)

    return property(find)


class Borrowing(Cell):
    """The mixin: a cell of which `layer` and `suffix` say where its parameters are."""

    # A tuple, because a module as an attribute would be a child, and its parameters the cell's.
    _layer: tuple[nn.Module]
    _suffix: str

    @classmethod
    def of(cls, cell: Cell, layer: nn.Module, suffix: str) -> Self:
        """The cell, without its own parameters."""
        borrower = cls.__new__(cls)
        nn.Module.__init__(borrower)
        for name, value in vars(cell).items():
            if name not in vars(borrower):
                borrower.__dict__[name] = value
        borrower.__dict__["_layer"], borrower.__dict__["_suffix"] = (layer,), suffix
        return borrower

    @property
    def suffix(self) -> str:
        """Of the names of its parameters: "_l0", "_l1_reverse" and so on."""
        return self._suffix

    weight_ih: nn.Parameter = _borrowed("weight_ih")
    weight_hh: nn.Parameter = _borrowed("weight_hh")
    bias_ih: nn.Parameter | None = _borrowed("bias_ih")
    bias_hh: nn.Parameter | None = _borrowed("bias_hh")


class _Tanh(Borrowing, TanhCell):
    pass


class _GRU(Borrowing, GRUCell):
    pass


class _LSTM(Borrowing, LSTMCell):
    pass


class _DiagonalGRU(Borrowing, DiagonalGRUCell):
    pass


class _DiagonalLSTM(Borrowing, DiagonalLSTMCell):
    pass


BORROWERS: dict[type[Cell], type[Borrowing]] = {
    TanhCell: _Tanh,
    GRUCell: _GRU,
    LSTMCell: _LSTM,
    DiagonalGRUCell: _DiagonalGRU,
    DiagonalLSTMCell: _DiagonalLSTM,
}


def lend(layer: nn.Module, suffix: str, cell: Cell) -> Borrowing:
    """Registers the parameters of a new cell on the layer; the cell to compute with from now on."""
    for name in NAMES:
        parameter = cell._parameters.get(name)
        if parameter is not None:
            layer.register_parameter(name + suffix, parameter)
    return BORROWERS[type(cell)].of(cell, layer, suffix)


@torch.no_grad()
def redraw(cell: Borrowing, fresh: Cell) -> None:
    """Overwrites a cell's parameters with those of a new one."""
    for name in NAMES:
        parameter = fresh._parameters.get(name)
        if parameter is not None:
            getattr(cell, name).copy_(parameter)
