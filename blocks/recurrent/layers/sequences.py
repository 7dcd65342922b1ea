"""What a layer is given, as solvers want it: a batch, or one row of sequences one after another.

`nn.GRU` takes (time, batch, dim), with `batch_first` (batch, time, dim), without a batch
(time, dim), or a `PackedSequence`. All become `data` (batch, time, dim), packed ones without
padding, and `restore` gives a result the form of the input.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.ragged import Ragged


@dataclass(frozen=True)
class Sequences:
    """A layer's input.

    Attributes:
        data: (batch, time, dim); (1, rows, dim) of a packed input.
        count: number of sequences.
        batched: whether the input had a batch.
        batch_first: whether it came first.
        packed: the input, if it was packed.
        ragged: where its rows lie in `data`.
    """

    data: Float[Tensor, "batch time dim"]
    count: int
    batched: bool = True
    batch_first: bool = True
    packed: PackedSequence | None = None
    ragged: Ragged | None = None

    @classmethod
    def of(
        cls, given: Tensor | PackedSequence, input_size: int, batch_first: bool, layer: str
    ) -> "Sequences":
        """The sequences of an input.

        Raises:
            TypeError: neither a tensor nor a `PackedSequence`.
            ValueError: other dimensions than a layer takes, another width, no floating-point dtype.
        """
        if isinstance(given, PackedSequence):
            _check_width(given.data, input_size, 2, "(rows, input_size) in a PackedSequence", layer)
            ragged = Ragged.of(given.batch_sizes, given.data.device)
            data = given.data.index_select(0, ragged.order).unsqueeze(0)
            return cls(data, int(given.batch_sizes[0]), packed=given, ragged=ragged)
        if not isinstance(given, Tensor):
            raise TypeError(
                f"{layer}: expected a tensor or a PackedSequence, got {type(given).__name__}"
            )
        batch = "(batch, time, input_size)" if batch_first else "(time, batch, input_size)"
        ndim = 2 if given.ndim == 2 else 3
        _check_width(given, input_size, ndim, f"{batch} or (time, input_size)", layer)
        if ndim == 2:
            return cls(given.unsqueeze(0), 1, batched=False)
        data = given if batch_first else given.transpose(0, 1)
        return cls(data, data.shape[0], batch_first=batch_first)

    @property
    def cu_seqlens(self) -> Int[Tensor, " boundaries"] | None:
        """Where packed sequences begin in `data`."""
        return None if self.ragged is None else self.ragged.cu_seqlens

    def turned(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        """Every sequence from its last step to its first; its own inverse."""
        if self.ragged is None:
            return x.flip(1)
        return x.index_select(1, self.ragged.reverse)

    def restore(self, outputs: Float[Tensor, "batch time dim"]) -> Tensor | PackedSequence:
        """Outputs in the form of the input."""
        if self.packed is not None and self.ragged is not None:
            return self.packed._replace(data=outputs[0].index_select(0, self.ragged.back))
        if not self.batched:
            return outputs.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1)

    def ordered(self, states: Float[Tensor, "layers batch hidden"]) -> Tensor:
        """Initial states in the order of `data`: a packed input is sorted by length."""
        order = None if self.packed is None else self.packed.sorted_indices
        return states if order is None else states.index_select(1, order)

    def given_order(self, states: Float[Tensor, "layers batch hidden"]) -> Tensor:
        """Final states in the order of the input, without a batch if it had none."""
        order = None if self.packed is None else self.packed.unsorted_indices
        states = states if order is None else states.index_select(1, order)
        return states if self.batched else states.squeeze(1)

    def check_state(self, name: str, state: Tensor | None, layers: int, hidden_size: int) -> None:
        """Refuses an initial state of another shape or device."""
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(state).__name__}")
        expected = (layers, self.count, hidden_size) if self.batched else (layers, hidden_size)
        if tuple(state.shape) != expected:
            whose = "(layers · directions, batch, hidden)" if self.batched else "(…, hidden)"
            raise ValueError(
                f"{name}: expected {expected}, {whose}, got {tuple(state.shape)}; it is never "
                "batch first"
            )
        if not state.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point dtype, got {state.dtype}")
        if state.device != self.data.device:
            raise ValueError(
                f"{name}: expected it on {self.data.device} as the input is, got {state.device}"
            )


def _check_width(given: Tensor, input_size: int, ndim: int, shape: str, layer: str) -> None:
    if given.ndim != ndim or given.shape[-1] != input_size:
        raise ValueError(
            f"{layer}: expected {shape} with input_size={input_size}, got {tuple(given.shape)}"
        )
    if not given.is_floating_point():
        raise ValueError(f"{layer}: expected a floating-point input, got {given.dtype}")
