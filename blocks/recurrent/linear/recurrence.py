"""h_t = a_t h_{t−1} + b_t, y_t = readout(h_t, x_t), with a and b functions of the input x alone.

The whole sequence is one scan, a step of generation one line; both give the same numbers, from any
initial state. States, and what is scanned, are in float32 or complex64 (float64 and complex128 for
a float64 model) also where the model is in half precision: the rounding to the input's dtype is in
the readout. So the final state continues a sequence as if it had never been cut.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.linear.precision import WideParameters
from ropewalk.blocks.recurrent.ragged import final_states
from ropewalk.kernels.autocast import AUTOCAST_DEVICES
from ropewalk.kernels.linear_scan import linear_scan

States = Num[Tensor, "batch time hidden"]


class LinearRecurrence(WideParameters):
    """What `LRU`, `SLRU` and `MinGRU` share.

    Attributes:
        input_size: of a step's input.
        hidden_size: of the state.
    """

    input_size: int
    hidden_size: int
    complex_state: bool = False

    def coefficients(self, inputs: Float[Tensor, "batch time input"]) -> tuple[States, States]:
        """The factors a and the drives b, at least in float32."""
        raise NotImplementedError

    def readout(
        self, states: States, inputs: Float[Tensor, "batch time input"]
    ) -> Float[Tensor, "batch time output"]:
        """The outputs, in the inputs' dtype."""
        raise NotImplementedError

    def forward(
        self,
        inputs: Float[Tensor, "batch time input"],
        initial_state: Num[Tensor, "sequences hidden"] | None = None,
        *,
        cu_seqlens: Int[Tensor, " boundaries"] | None = None,
    ) -> tuple[Float[Tensor, "batch time output"], Num[Tensor, "sequences hidden"]]:
        """The outputs of whole sequences.

        Args:
            inputs: (batch, time, input_size) in the parameters' dtype; no step is fine, too.
            initial_state: before the first step; zeros if None. A final state of another call.
            cu_seqlens: (sequences + 1,) int32 or int64, for a batch of 1 in which sequences lie one
                after another: where each begins, and the length of all. States do not pass from one
                to the next.

        Returns:
            Outputs, and the state after each sequence's last step in float32 or complex64
            (float64 or complex128), whatever the inputs are in.

        Raises:
            ValueError: shapes, dtypes or boundaries that do not fit.
            TypeError: no tensor, such as a `PackedSequence`: give `cu_seqlens`.
        """
        self._check(inputs, "(batch, time, input_size)", 3)
        if cu_seqlens is not None and cu_seqlens.ndim != 1:
            raise ValueError(
                f"cu_seqlens: expected shape (sequences + 1,), got {tuple(cu_seqlens.shape)}"
            )
        sequences = inputs.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self._check_state("initial_state", initial_state, sequences)
        a, b = self.coefficients(inputs)
        state = None if initial_state is None else initial_state.to(b.dtype)
        states = linear_scan(a, b, state, cu_seqlens=cu_seqlens)
        return self.readout(states, inputs), final_states(states, state, cu_seqlens)

    def step(
        self,
        inputs: Float[Tensor, "batch input"],
        state: Num[Tensor, "batch hidden"] | None = None,
    ) -> tuple[Float[Tensor, "batch output"], Num[Tensor, "batch hidden"]]:
        """One step of generation, the same numbers as in the whole sequence.

        Args:
            inputs: (batch, input_size).
            state: after the step before, or of `forward`; zeros if None.

        Returns:
            The output of the step and the state after it.

        Raises:
            ValueError: shapes or dtypes that do not fit.
            TypeError: no tensor.
        """
        self._check(inputs, "(batch, input_size)", 2)
        self._check_state("state", state, inputs.shape[0])
        inputs = inputs.unsqueeze(1)
        a, b = self.coefficients(inputs)
        new = b if state is None else a * state.to(b.dtype).unsqueeze(1) + b
        return self.readout(new, inputs).squeeze(1), new.squeeze(1)

    def _check(self, inputs: object, shape: str, ndim: int) -> None:
        name = type(self).__name__
        if not isinstance(inputs, Tensor):
            packed = isinstance(inputs, PackedSequence)
            mend = (
                "put the sequences one after another, torch.cat(sequences)[None], and give "
                "cu_seqlens, where each begins"
                if packed
                else "make a tensor of it"
            )
            raise TypeError(
                f"{name}: expected inputs {shape}, a tensor, got {type(inputs).__name__}; {mend}"
            )
        if inputs.ndim != ndim or inputs.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: expected inputs {shape} with input_size={self.input_size}, got "
                f"{tuple(inputs.shape)}; a single sequence needs a batch of its own, inputs[None]"
            )
        if not inputs.is_floating_point():
            raise ValueError(f"{name}: expected floating-point inputs, got {inputs.dtype}")
        kind = inputs.device.type
        if kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
            return
        dtype = next(p.dtype for key, p in self.named_parameters() if key not in self.wide)
        if inputs.dtype != dtype:
            raise ValueError(
                f"{name}: expected inputs in {dtype} as the parameters are, got {inputs.dtype}; "
                f"use .to({dtype}), or convert the module"
            )

    def _check_state(self, name: str, state: Tensor | None, sequences: int) -> None:
        if state is None:
            return
        if tuple(state.shape) != (sequences, self.hidden_size):
            raise ValueError(
                f"{name}: expected ({sequences}, {self.hidden_size}), a state for each sequence, "
                f"got {tuple(state.shape)}"
            )
        if state.is_complex() and not self.complex_state:
            raise ValueError(f"{name}: expected a real state, got {state.dtype}; take its .real")


def wider(inputs: Tensor) -> Tensor:
    """In float32 at least: half precision ends where the scan begins."""
    return inputs if inputs.dtype == torch.float64 else inputs.float()
