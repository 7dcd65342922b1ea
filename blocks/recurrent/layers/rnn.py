"""`ParallelRNN`: `nn.RNN`'s interface over a tanh recurrence, computed in parallel along time."""

from typing import Literal, Self, Unpack

import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import Cell, TanhCell
from ropewalk.blocks.recurrent.layers.options import Options
from ropewalk.blocks.recurrent.layers.single_state import SingleStateRecurrence
from ropewalk.blocks.recurrent.layers.transfer import (
    check_source,
    give_weights,
    take_weights,
    torch_arguments,
)


class ParallelRNN(SingleStateRecurrence):
    """h' = tanh(A h + W x + b) with the interface of `nn.RNN`.

    By default A is diagonal and bounded below 1. With structure="dense" it is `nn.RNN`, whose
    `state_dict` it loads, the same function.

    Example:
        >>> layer = ParallelRNN(32, 64, batch_first=True)
        >>> outputs, states = layer(torch.randn(4, 100, 32))
        >>> outputs.shape, states.shape
        (torch.Size([4, 100, 64]), torch.Size([1, 4, 64]))

    Attributes:
        weight_ih_l{k}: W, (hidden, input), or of higher layers (hidden, directions·hidden). Those
            of the second direction end in _reverse.
        weight_hh_l{k}: A, diagonal (1, hidden), dense (hidden, hidden). Of a bounded layer the free
            parameters; `effective_weights` are what they make.
        bias_ih_l{k}: (hidden,).
        bias_hh_l{k}: (hidden,).

    Args:
        input_size: of a step's input.
        hidden_size: of the state.
        num_layers: how many are stacked.
        nonlinearity: "tanh"; relu's states have no bound and its Jacobians jump, so that Newton's
            method is no help.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (batch, time, …); states never are.
        dropout: probability, of the outputs of all layers but the last, in training.
        bidirectional: whether a second recurrence runs backwards; outputs are side by side.
        device: of the parameters.
        dtype: of the parameters.
        **options: structure, bounded, mode, method, window, backend; see `Options`.

    Raises:
        ValueError: sizes, options or combinations of them that make no sense.
        TypeError: an argument of the wrong kind.
    """

    kind = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        _check_nonlinearity(nonlinearity)
        self.nonlinearity: Literal["tanh"] = nonlinearity
        self._build(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            options,
        )

    def _new_cell(
        self, input_size: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Cell:
        return TanhCell(
            self.hidden_size,
            self.options["structure"] == "diagonal",
            input_dim=input_size,
            bias=self.bias,
            bounded=self.options["bounded"],
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_rnn(cls, rnn: nn.RNN, *, structure: Literal["diagonal", "dense"] = "dense") -> Self:
        """The layer that computes what an `nn.RNN` does, with copies of its weights.

        Args:
            rnn: it is left as it is.
            structure: "diagonal" if its recurrent matrices are diagonal.

        Raises:
            TypeError: another module.
            ValueError: relu, or matrices that are not diagonal.
        """
        check_source(cls.__name__, rnn, nn.RNN)
        _check_nonlinearity(rnn.nonlinearity)
        layer = cls(**torch_arguments(rnn), structure=structure, bounded=False)
        take_weights(layer.cells, rnn)
        return layer.train(rnn.training)

    def to_rnn(self) -> nn.RNN:
        """The `nn.RNN` that computes the same, with copies of the effective weights.

        Raises:
            ValueError: a fixed number of iterations, which no `nn.RNN` has.
        """
        self._check_exact()
        return give_weights(self.cells, nn.RNN(**torch_arguments(self))).train(self.training)


def _check_nonlinearity(nonlinearity: object) -> None:
    if nonlinearity != "tanh":
        raise ValueError(
            f"ParallelRNN.nonlinearity: expected 'tanh', got {nonlinearity!r}: states of relu have "
            "no bound and its Jacobians jump, so that solving in parallel has nothing to hold on "
            "to; keep nn.RNN for it, or write a FunctionCell"
        )
