"""What layers of one state a step have in common: `forward` and `step` in torch's form."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.layers.layer import ParallelRecurrence


class SingleStateRecurrence(ParallelRecurrence):
    """A layer whose state is one tensor, as those of `nn.GRU` and `nn.RNN`."""

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch's name
        hx: Float[Tensor, "layers *batch hidden"] | None = None,
    ) -> tuple[Tensor | PackedSequence, Float[Tensor, "layers *batch hidden"]]:
        """Outputs of whole sequences and the states after their last steps.

        Args:
            input: (time, batch, input_size), with `batch_first` (batch, time, input_size), without
                a batch (time, input_size), or packed, which is computed without padding. No steps
                give no outputs and the initial state. NaN passes into what follows in its sequence,
                as in torch's layer, with a number as mode into where its iterations reach; methods
                that only the solvers have, such as "elk", refuse it. A compiler leaves packed
                sequences to the layer, because their lengths are numbers that it does not know: it
                breaks its graph there, and with fullgraph=True refuses.
            hx: (num_layers · directions, batch, hidden_size) in the dtype of the input, without a
                batch (num_layers · directions, hidden_size); zeros if None. Of packed sequences in
                the order in which they were given.

        Returns:
            As torch's layer: outputs in the form of the input, and the states in the form of `hx`.
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
