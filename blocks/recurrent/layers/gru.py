"""`ParallelGRU`: `nn.GRU`'s interface over a GRU that is computed in parallel along time."""

from typing import Literal, Self, Unpack

import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import Cell, DiagonalGRUCell, GRUCell
from ropewalk.blocks.recurrent.layers.options import Options
from ropewalk.blocks.recurrent.layers.single_state import SingleStateRecurrence
from ropewalk.blocks.recurrent.layers.transfer import (
    check_source,
    give_weights,
    take_weights,
    torch_arguments,
)


class ParallelGRU(SingleStateRecurrence):
    """A gated recurrent unit with the interface of `nn.GRU`.

    By default every channel's gates read only its own state (`DiagonalGRUCell`) and no state can
    grow. With structure="dense" it is `nn.GRU`, whose `state_dict` it loads, the same function.

    Example:
        >>> layer = ParallelGRU(32, 64, num_layers=2, batch_first=True)
        >>> outputs, states = layer(torch.randn(4, 100, 32))
        >>> outputs.shape, states.shape
        (torch.Size([4, 100, 64]), torch.Size([2, 4, 64]))
        >>> output, states = layer.step(torch.randn(4, 32), states)

    Attributes:
        weight_ih_l{k}: (3·hidden, input), or of higher layers (3·hidden, directions·hidden); gates
            r, z, n below one another. Those of the second direction end in _reverse.
        weight_hh_l{k}: diagonal (3, hidden): W_r, W_z, W_n; dense (3·hidden, hidden). Of a bounded
            layer the free parameters; `effective_weights` are what they make.
        bias_ih_l{k}: (3·hidden,).
        bias_hh_l{k}: (3·hidden,).

    Args:
        input_size: of a step's input.
        hidden_size: of the state.
        num_layers: how many are stacked.
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

    kind = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
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
        kind = GRUCell if self.options["structure"] == "dense" else DiagonalGRUCell
        return kind(
            input_size,
            self.hidden_size,
            bias=self.bias,
            bounded=self.options["bounded"],
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_gru(cls, gru: nn.GRU, *, structure: Literal["diagonal", "dense"] = "dense") -> Self:
        """The layer that computes what an `nn.GRU` does, with copies of its weights.

        Args:
            gru: it is left as it is.
            structure: "diagonal" if its recurrent matrices are diagonal.

        Raises:
            TypeError: another module.
            ValueError: matrices that are not diagonal.
        """
        check_source(cls.__name__, gru, nn.GRU)
        layer = cls(**torch_arguments(gru), structure=structure, bounded=False)
        take_weights(layer.cells, gru)
        return layer.train(gru.training)

    def to_gru(self) -> nn.GRU:
        """The `nn.GRU` that computes the same, with copies of the effective weights.

        Raises:
            ValueError: a fixed number of iterations, which no `nn.GRU` has.
        """
        self._check_exact()
        return give_weights(self.cells, nn.GRU(**torch_arguments(self))).train(self.training)
