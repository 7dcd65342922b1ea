"""What `ParallelGRU`, `ParallelLSTM` and `ParallelRNN` share: `nn.GRU`'s interface.

A layer projects its inputs with one product for all times. What remains of a diagonal cell is
elementwise along channels and runs in `newton_scan`; a dense cell runs in torch's operators
(`fused.py`), unless another method is asked for.
"""

import warnings
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.checks import require_integer, require_number
from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.layers.borrowing import Borrowing, lend, redraw
from ropewalk.blocks.recurrent.layers.fused import fused_step
from ropewalk.blocks.recurrent.layers.options import (
    BOUNDED,
    DEFAULTS,
    FUSED,
    IN_KERNEL,
    Options,
    checked,
)
from ropewalk.blocks.recurrent.layers.sequences import Sequences
from ropewalk.blocks.recurrent.layers.stack import all_fused, all_solved
from ropewalk.blocks.recurrent.layers.transfer import torch_weights
from ropewalk.kernels.autocast import AUTOCAST_DEVICES, cast_inputs, suspended

States = tuple[Float[Tensor, "layers batch hidden"], ...]


class ParallelRecurrence(nn.Module):
    """A stack of recurrent layers; a sub-class says which cell.

    Attributes:
        weight_ih_l0, …: parameters, named as those of `nn.GRU`.
        options: the keyword-only ones, see `Options`.
    """

    kind: ClassVar[str]
    parts: ClassVar[int] = 1

    def _build(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        options: Options,
    ) -> None:
        nn.Module.__init__(self)
        name = type(self).__name__
        require_integer(
            name, 1, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers
        )
        for argument, value in (
            ("bias", bias),
            ("batch_first", batch_first),
            ("bidirectional", bidirectional),
        ):
            if not isinstance(value, bool):
                raise TypeError(f"{name}.{argument}: expected True or False, got {value!r}")
        require_number(name, "a probability", dropout=dropout)
        if not 0 <= dropout <= 1:
            raise ValueError(f"{name}.dropout: expected a probability in [0, 1], got {dropout!r}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"{name}: dropout={dropout} is between layers, and there is only one; expected "
                "num_layers > 1",
                stacklevel=3,
            )
        self.options = checked(name, options)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional
        cells = []
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self.directions
            for suffix in ("", "_reverse")[: self.directions]:
                cell = self._new_cell(size, device, dtype)
                cells.append(lend(self, f"_l{layer}{suffix}", cell))
        # A tuple and no ModuleList: the parameters are this module's, under torch's names.
        self.cells: tuple[Borrowing, ...] = tuple(cells)

    def _new_cell(
        self, input_size: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Cell:
        """A cell of this layer's kind and structure, with parameters of its own."""
        raise NotImplementedError

    @property
    def directions(self) -> int:
        """2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def fused(self) -> bool:
        """Whether it runs in torch's operators."""
        dense = self.options["structure"] == "dense" and self.options["mode"] == "converged"
        return dense and self.options["method"] in FUSED

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the cells do."""
        for cell in self.cells:
            assert cell.input_size is not None  # of a built-in cell
            redraw(
                cell, self._new_cell(cell.input_size, cell.weight_ih.device, cell.weight_ih.dtype)
            )

    def _replicate_for_data_parallel(self) -> Self:
        """For `nn.DataParallel`: cells of a replica look up the replica's parameters."""
        replica: Self = super()._replicate_for_data_parallel()
        replica.cells = tuple(type(cell).of(cell, replica, cell.suffix) for cell in self.cells)
        return replica

    def flatten_parameters(self) -> None:
        """Does nothing; it is here because models call it on their `nn.GRU`s."""

    def _forward(
        self, given: Tensor | PackedSequence, states: States | None
    ) -> tuple[Tensor | PackedSequence, States]:
        """Outputs and final states, in the form and order of what was given."""
        if torch.compiler.is_compiling():
            if isinstance(given, PackedSequence):
                return self._outside_of_compilers(given, states)
            if not self._compilable:
                torch._dynamo.graph_break(
                    f"{type(self).__name__} with method={self.options['method']!r} cannot be "
                    "compiled as a whole, because it looks at its residual: take method='auto', a "
                    "number of iterations as mode, or fullgraph=False"
                )
                return self._outside_of_compilers(given, states)
        return self._computed(given, states)

    @property
    def _compilable(self) -> bool:
        """Whether no number has to be looked at."""
        diagonal = self.options["structure"] == "diagonal"
        in_kernel = diagonal and self.options["method"] in IN_KERNEL
        return self.fused or in_kernel or self.options["mode"] != "converged"

    # Lengths of packed sequences, and residuals, are numbers that no compiler knows. Not
    # torch.compiler.disable, which imports the compiler, and triton with it, where it is written.
    @_disable_dynamo
    def _outside_of_compilers(
        self, given: Tensor | PackedSequence, states: States | None
    ) -> tuple[Tensor | PackedSequence, States]:
        return self._computed(given, states)

    def _computed(
        self, given: Tensor | PackedSequence, states: States | None
    ) -> tuple[Tensor | PackedSequence, States]:
        sequences = Sequences.of(given, self.input_size, self.batch_first, type(self).__name__)
        self._check_kind(sequences.data, "hx", states)
        if states is None:
            shape = (self.num_layers * self.directions, sequences.count, self.hidden_size)
            before = (sequences.data.new_zeros(shape),) * self.parts
        else:
            for name, state in zip(self._named("hx"), states, strict=True):
                sequences.check_state(
                    name, state, self.num_layers * self.directions, self.hidden_size
                )
            batched = (s if sequences.batched else s.unsqueeze(1) for s in states)
            before = tuple(sequences.ordered(s) for s in batched)
        if self.fused:
            outputs, after = all_fused(self, sequences, before)
        else:
            data, after = all_solved(self, sequences, before)
            outputs = sequences.restore(data)
        return outputs, tuple(sequences.given_order(s) for s in after)

    def _step(
        self, inputs: Float[Tensor, "batch input"], states: States | None
    ) -> tuple[Float[Tensor, "batch hidden"], States]:
        name = type(self).__name__
        if self.bidirectional:
            raise ValueError(
                f"{name}.step: expected a layer of one direction; the other one begins at the end "
                "of a sequence, which generation does not know"
            )
        if self.options["mode"] != "converged":
            raise ValueError(
                f"{name}.step: expected mode='converged', got {self.options['mode']}: after a "
                "fixed number of iterations a state does not follow from the one before"
            )
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"{name}.step: expected (batch, input_size), got {got}")
        sequences = Sequences.of(inputs.unsqueeze(1), self.input_size, True, f"{name}.step")
        self._check_kind(inputs, "state", states)
        if states is None:
            shape = (self.num_layers, len(inputs), self.hidden_size)
            states = (inputs.new_zeros(shape),) * self.parts
        for label, state in zip(self._named("state"), states, strict=True):
            sequences.check_state(label, state, self.num_layers, self.hidden_size)
        data, finals = inputs, []
        for layer, cell in enumerate(self.cells):
            if layer > 0:
                data = functional.dropout(data, self.dropout, self.training)
            state = tuple(part[layer] for part in states)
            final = self._cell_step(cell, data, state)
            data = final[0]
            finals.append(final)
        return data, tuple(torch.stack(part) for part in zip(*finals, strict=True))

    def _cell_step(self, cell: Borrowing, inputs: Tensor, state: States) -> States:
        """The parts of the state after one step of one layer."""
        if self.options["structure"] == "dense":
            inputs, *rest = cast_inputs(inputs, *state, *torch_weights(cell))
            before, weights = [s.to(inputs.dtype) for s in rest[: self.parts]], rest[self.parts :]
            with suspended(inputs):
                return fused_step(self.kind, inputs, before, weights)
        drive = cell.project(inputs)
        wide = torch.promote_types(drive.dtype, torch.float32)
        before = torch.stack(state[::-1], dim=-2).to(wide).reshape(-1, *cell.state_shape)
        after = cell.step(before, drive.to(wide)).to(drive.dtype)
        return after.reshape(-1, self.parts, self.hidden_size).unbind(1)[::-1]

    def effective_weights(self, layer: int = 0, *, reverse: bool = False) -> dict[str, Tensor]:
        """The recurrent weights that a step takes: of a bounded layer, made of its parameters.

        Args:
            layer: which of the stack.
            reverse: whether that of the second direction.

        Returns:
            By the names of the cell's equations, differentiable, of a bounded layer in float32 or
            wider. Diagonal ones are (hidden,), dense ones (hidden, hidden), biases (hidden,).
            `ParallelGRU`: W_r, W_z, W_n and b_n. `ParallelRNN`: A. `ParallelLSTM`: a_f, a_z, a_o,
            c_f and c_o; dense W_i, W_f, W_g and W_o.

        Raises:
            ValueError: a layer that there is not.
            TypeError: an argument of the wrong kind.
        """
        name = type(self).__name__
        require_integer(f"{name}.effective_weights", 0, layer=layer)
        if not isinstance(reverse, bool):
            raise TypeError(
                f"{name}.effective_weights.reverse: expected True or False, got {reverse!r}"
            )
        if layer >= self.num_layers or (reverse and not self.bidirectional):
            what = f"layer < {self.num_layers}" if layer >= self.num_layers else "reverse=False"
            raise ValueError(
                f"{name}.effective_weights: expected {what} of num_layers={self.num_layers} and "
                f"bidirectional={self.bidirectional}, got layer={layer}, reverse={reverse}"
            )
        return self.cells[layer * self.directions + reverse].named_weights()

    def _check_exact(self) -> None:
        """Refuses to become a torch layer where outputs would not be the same."""
        if self.options["mode"] != "converged":
            raise ValueError(
                f"{type(self).__name__}: expected mode='converged', got {self.options['mode']}: a "
                "fixed number of iterations is another model than torch's layer"
            )

    def _named(self, name: str) -> tuple[str, ...]:
        """What the parts of a state are called in errors."""
        return (name,) if self.parts == 1 else (f"{name}[0]", f"{name}[1]")

    def _check_kind(self, data: Tensor, name: str, states: States | None) -> None:
        """Refuses another device than the parameters', and mixed dtypes but under autocast."""
        weight, kind = self.weight_ih_l0, data.device.type
        if data.device != weight.device:
            raise ValueError(
                f"input: expected it on {weight.device} as the parameters are, got {data.device}"
            )
        if kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
            return
        given = {"input": data, **dict(zip(self._named(name), states or (), strict=False))}
        for label, x in given.items():
            if isinstance(x, Tensor) and x.dtype != weight.dtype:
                raise ValueError(
                    f"{label}: expected {weight.dtype} as the parameters are, got {x.dtype}; use "
                    f".to({weight.dtype}), or convert the layer"
                )

    def extra_repr(self) -> str:
        """Sizes, and what is not the default."""
        shown = f"{self.input_size}, {self.hidden_size}"
        defaults: dict[str, Any] = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                shown += f", {name}={getattr(self, name)}"
        usual = {**DEFAULTS, "bounded": BOUNDED[self.options["structure"]]}
        for name, value in self.options.items():
            if name == "structure" or value != usual[name]:
                shown += f", {name}={value!r}"
        return shown
