"""`ParallelGRU`: `nn.GRU`'s interface over a GRU that is computed in parallel along time."""

from typing import Literal, Self, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.cells import Cell, DiagonalGRUCell, GRUCell
from ropewalk.blocks.recurrent.layers.layer import ParallelRecurrence
from ropewalk.blocks.recurrent.layers.options import Options
from ropewalk.blocks.recurrent.layers.transfer import (
    check_source,
    give_weights,
    take_weights,
    torch_arguments,
)


class ParallelGRU(ParallelRecurrence):
    """A gated recurrent unit with the interface of `nn.GRU`.

    By default every channel's gates read only its own state (`DiagonalGRUCell`) and no state can
    grow. With structure="dense" and bounded=False it is `nn.GRU`, whose `state_dict` it loads.

    Example:
        >>> layer = ParallelGRU(32, 64, num_layers=2, batch_first=True)
        >>> outputs, states = layer(torch.randn(4, 100, 32))
        >>> outputs.shape, states.shape
        (torch.Size([4, 100, 64]), torch.Size([2, 4, 64]))
        >>> output, states = layer.step(torch.randn(4, 32), states)

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

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.GRU's name
        hx: Float[Tensor, "layers *batch hidden"] | None = None,
    ) -> tuple[Tensor | PackedSequence, Float[Tensor, "layers *batch hidden"]]:
        """Outputs of whole sequences and the states after their last steps.

        Args:
            input: (time, batch, input_size), with `batch_first` (batch, time, input_size), without
                a batch (time, input_size), or packed, which is computed without padding. No steps
                give no outputs and the initial state. NaN passes into what follows in its sequence,
                as in torch's layer; methods of the solvers refuse it.
            hx: (num_layers · directions, batch, hidden_size) in the dtype of the input, without a
                batch (num_layers · directions, hidden_size); zeros if None. Of packed sequences in
                the order in which they were given.

        Returns:
            As `nn.GRU`: outputs in the form of the input, and the states in the form of `hx`.
            Under autocast both are in its dtype.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit.
            TypeError: no tensors.
        """
        outputs, (states,) = self._forward(input, None if hx is None else (hx,))
        return outputs, states

    def step(
        self,
        inputs: Float[Tensor, "batch input"],
        state: Float[Tensor, "layers batch hidden"] | None = None,
    ) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "layers batch hidden"]]:
        """One step of generation through all layers.

        Args:
            inputs: (batch, input_size).
            state: of the step before or of `forward`; zeros if None.

        Returns:
            The output, and the state, as `forward` gives them for the whole sequence.

        Raises:
            ValueError: a bidirectional layer, a fixed number of iterations, or wrong shapes.
        """
        output, (state,) = self._step(inputs, None if state is None else (state,))
        return output, state

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
