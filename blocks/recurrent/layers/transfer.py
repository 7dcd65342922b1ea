"""Weights from and to torch's own layers."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ropewalk.blocks.recurrent.cells import (
    Cell,
    DiagonalGRUCell,
    GRUCell,
    LSTMCell,
    TanhCell,
)
from ropewalk.blocks.recurrent.layers.borrowing import NAMES, Borrowing

RNN = TypeVar("RNN", bound=nn.RNNBase)


def torch_weights(cell: Cell) -> list[Tensor]:
    """weight_ih, weight_hh and the biases with which torch's cell computes the same.

    In the dtype of the parameters: in half precision the rounding of bounded weights may cross
    their bound by its last digit.
    """
    if not isinstance(cell, TanhCell | GRUCell | DiagonalGRUCell | LSTMCell):
        raise TypeError(f"{type(cell).__name__}: torch has no such cell")
    dtype = cell.weight_ih.dtype
    recurrent: Tensor = cell.weight_hh
    biases: list[Tensor] = [b for b in (cell.bias_ih, cell.bias_hh) if b is not None]
    if isinstance(cell, TanhCell):
        recurrent = cell.effective_weight()
        recurrent = torch.diag_embed(recurrent) if cell.diagonal else recurrent
    elif isinstance(cell, GRUCell | DiagonalGRUCell) and (
        cell.bounded or cell.structure == "diagonal"
    ):
        *blocks, new_bias = cell.effective_weights()
        if cell.structure == "diagonal":
            blocks = [torch.diag_embed(block) for block in blocks]
        recurrent = torch.cat(blocks)
        if biases:
            others = biases[1][: 2 * cell.hidden_size]
            biases[1] = torch.cat((others, new_bias.to(others.dtype)))
    return [cell.weight_ih, recurrent.to(dtype), *biases]


@torch.no_grad()
def take_weights(cells: Sequence[Borrowing], module: nn.RNNBase) -> None:
    """Copies the weights of a torch module, and whether they are trained.

    Raises:
        ValueError: recurrent matrices that are not diagonal, of diagonal cells.
    """
    for cell in cells:
        for name in NAMES:
            mine = getattr(cell, name)
            if mine is None:
                continue
            parameter = module.get_parameter(name + cell.suffix)
            diagonal = name == "weight_hh" and cell.structure == "diagonal"
            mine.copy_(_diagonals(parameter, name + cell.suffix) if diagonal else parameter)
            mine.requires_grad_(parameter.requires_grad)


@torch.no_grad()
def give_weights(cells: Sequence[Borrowing], module: RNN) -> RNN:
    """Copies the effective weights into a torch module, and whether they are trained."""
    for cell in cells:
        for name, weight in zip(NAMES, torch_weights(cell), strict=False):
            theirs = module.get_parameter(name + cell.suffix)
            theirs.copy_(weight).requires_grad_(getattr(cell, name).requires_grad)
    return module


def _diagonals(weight: Tensor, name: str) -> Tensor:
    blocks = weight.unflatten(0, (-1, weight.shape[1]))
    diagonals = blocks.diagonal(dim1=1, dim2=2)
    rest = (blocks - torch.diag_embed(diagonals)).abs().max()
    if rest > 0:
        raise ValueError(
            f"{name}: expected diagonal matrices for structure='diagonal', got entries of up to "
            f"{float(rest):.3g} beside the diagonal; take structure='dense'"
        )
    return diagonals


def torch_arguments(module: Any) -> dict[str, Any]:
    """The arguments with which a layer like it is made, of a torch module or of one of ours."""
    parameter = module.weight_ih_l0
    return {
        "input_size": module.input_size,
        "hidden_size": module.hidden_size,
        "num_layers": module.num_layers,
        "bias": module.bias,
        "batch_first": module.batch_first,
        "dropout": module.dropout,
        "bidirectional": module.bidirectional,
        "device": parameter.device,
        "dtype": parameter.dtype,
    }


def check_source(layer: str, module: object, kind: type[nn.RNNBase]) -> None:
    """Refuses what has other cells than this kind."""
    if not isinstance(module, kind):
        raise TypeError(f"{layer}: expected an nn.{kind.__name__}, got {type(module).__name__}")
    if module.proj_size:
        raise ValueError(
            f"{layer}: expected proj_size=0, got {module.proj_size}: a projected state is another "
            "cell; train without it, or keep nn.LSTM"
        )
