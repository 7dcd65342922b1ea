"""`ParallelLSTM`: `nn.LSTM`'s interface over an LSTM that is computed in parallel along time."""

from typing import Self, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.cells import Cell, DiagonalLSTMCell, LSTMCell
from ropewalk.blocks.recurrent.layers.layer import ParallelRecurrence
from ropewalk.blocks.recurrent.layers.options import Options
from ropewalk.blocks.recurrent.layers.transfer import (
    check_source,
    give_weights,
    take_weights,
    torch_arguments,
)

States = tuple[Float[Tensor, "layers *batch hidden"], Float[Tensor, "layers *batch hidden"]]


class ParallelLSTM(ParallelRecurrence):
    """Long short-term memory with the interface of `nn.LSTM`.

    By default every channel's gates read only its own state, input and forget gate are coupled, and
    no state can grow (`DiagonalLSTMCell`); all of its biases are `bias_ih`. With structure="dense"
    it is `nn.LSTM`, whose `state_dict` it loads, the same function.

    Example:
        >>> layer = ParallelLSTM(32, 64, batch_first=True)
        >>> outputs, (h, c) = layer(torch.randn(4, 100, 32))
        >>> outputs.shape, h.shape, c.shape
        (torch.Size([4, 100, 64]), torch.Size([1, 4, 64]), torch.Size([1, 4, 64]))

    Attributes:
        weight_ih_l{k}: diagonal (3·hidden, input), gates f, z, o below one another; dense
            (4·hidden, input), gates i, f, g, o; of higher layers directions·hidden instead of
            input. Those of the second direction end in _reverse.
        weight_hh_l{k}: diagonal (5, hidden): a_f, a_z, a_o, c_f, c_o; dense (4·hidden, hidden). Of
            a bounded layer the free parameters; `effective_weights` are what they make.
        bias_ih_l{k}: (3·hidden,), dense (4·hidden,).
        bias_hh_l{k}: (4·hidden,) of a dense layer; a diagonal one has none.

    Args:
        input_size: of a step's input.
        hidden_size: of h and of c.
        num_layers: how many are stacked.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (batch, time, …); states never are.
        dropout: probability, of the outputs of all layers but the last, in training.
        bidirectional: whether a second recurrence runs backwards; outputs are side by side.
        proj_size: 0; `nn.LSTM`'s projection of the state is not offered.
        device: of the parameters.
        dtype: of the parameters.
        **options: structure, bounded, mode, method, window, backend; see `Options`.

    Raises:
        ValueError: sizes, options or combinations of them that make no sense: a projection, or
            structure="dense" with bounded=True.
        TypeError: an argument of the wrong kind.
    """

    kind = "lstm"
    parts = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        if proj_size != 0:
            raise ValueError(
                f"ParallelLSTM.proj_size: expected 0, got {proj_size!r}: a projected state mixes "
                "channels at every step; put an nn.Linear behind the layer"
            )
        if options.get("structure") == "dense" and options.get("bounded") is True:
            raise ValueError(
                "ParallelLSTM.bounded: expected False with structure='dense', got True: the cell "
                "state of torch's LSTM is a sum without bound; leave bounded= out, or take "
                "structure='diagonal'"
            )
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
        size, bias = self.hidden_size, self.bias
        if self.options["structure"] == "dense":
            return LSTMCell(input_size, size, bias=bias, device=device, dtype=dtype)
        bounded = self.options["bounded"]
        return DiagonalLSTMCell(
            input_size, size, bias=bias, bounded=bounded, device=device, dtype=dtype
        )

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - nn.LSTM's name
        hx: States | None = None,
    ) -> tuple[Tensor | PackedSequence, States]:
        """Outputs of whole sequences and the states after their last steps.

        Args:
            input: (time, batch, input_size), with `batch_first` (batch, time, input_size), without
                a batch (time, input_size), or packed, which is computed without padding. No steps
                give no outputs and the initial state. NaN passes into what follows in its sequence,
                as in torch's layer, with a number as mode into where its iterations reach; methods
                that only the solvers have, such as "elk", refuse it. A compiler leaves packed
                sequences to the layer, because their lengths are numbers that it does not know: it
                breaks its graph there, and with fullgraph=True refuses.
            hx: h and c, each (num_layers · directions, batch, hidden_size) in the dtype of the
                input, without a batch (num_layers · directions, hidden_size); zeros if None. Of
                packed sequences in the order in which they were given.

        Returns:
            As `nn.LSTM`: outputs in the form of the input, and h and c in the form of `hx`. Under
            autocast all are in its dtype.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit.
            TypeError: no tensors.
        """
        outputs, (h, c) = self._forward(input, _pair("hx", hx))
        return outputs, (h, c)

    def step(
        self, inputs: Float[Tensor, "batch input"], state: States | None = None
    ) -> tuple[Float[Tensor, "batch hidden"], States]:
        """One step of generation through all layers.

        Args:
            inputs: (batch, input_size).
            state: h and c of the step before or of `forward`; zeros if None.

        Returns:
            The output, and h and c, as `forward` gives them for the whole sequence.

        Raises:
            ValueError: a bidirectional layer, a fixed number of iterations, or wrong shapes.
        """
        output, (h, c) = self._step(inputs, _pair("state", state))
        return output, (h, c)

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM) -> Self:
        """The dense layer that computes what an `nn.LSTM` does, with copies of its weights.

        There is no diagonal one: its gates are coupled, and torch's are not.

        Args:
            lstm: it is left as it is.

        Raises:
            TypeError: another module.
            ValueError: a projected state.
        """
        check_source(cls.__name__, lstm, nn.LSTM)
        layer = cls(**torch_arguments(lstm), structure="dense", bounded=False)
        take_weights(layer.cells, lstm)
        return layer.train(lstm.training)

    def to_lstm(self) -> nn.LSTM:
        """The `nn.LSTM` that computes the same, with copies of the weights.

        Raises:
            ValueError: a diagonal layer, whose coupled gates and peepholes torch does not have, or
                a fixed number of iterations.
        """
        self._check_exact()
        if self.options["structure"] == "diagonal":
            raise ValueError(
                "ParallelLSTM.to_lstm: expected structure='dense', got 'diagonal', whose coupled "
                "gates and peepholes nn.LSTM does not have"
            )
        return give_weights(self.cells, nn.LSTM(**torch_arguments(self))).train(self.training)


def _pair(name: str, states: States | None) -> States | None:
    if states is None:
        return None
    if not isinstance(states, tuple | list) or len(states) != 2:
        raise TypeError(f"{name}: expected a pair (h, c), got {type(states).__name__}")
    return states[0], states[1]
