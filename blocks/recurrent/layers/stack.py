"""All layers of a stack over whole sequences: each by a recurrence, or all in torch's operator."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ropewalk.blocks.recurrent.layers.fused import fused_rnn
from ropewalk.blocks.recurrent.layers.sequences import Sequences
from ropewalk.blocks.recurrent.layers.solving import final_and_outputs
from ropewalk.blocks.recurrent.layers.transfer import torch_weights
from ropewalk.kernels.autocast import cast_inputs, suspended

if TYPE_CHECKING:
    from ropewalk.blocks.recurrent.layers.layer import ParallelRecurrence

States = tuple[Float[Tensor, "layers batch hidden"], ...]


def all_solved(
    layers: "ParallelRecurrence", sequences: Sequences, before: States
) -> tuple[Tensor, States]:
    """Layer by layer, each as one recurrence over time."""
    data, finals, directions = sequences.data, [], layers.directions
    for layer in range(layers.num_layers):
        if layer > 0:
            data = functional.dropout(data, layers.dropout, layers.training)
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            state = tuple(part[index] for part in before)
            turn = sequences.turned if direction else _unchanged
            found, final = final_and_outputs(
                layers.cells[index], turn(data), state, sequences.cu_seqlens, layers.options
            )
            outputs.append(turn(found))
            finals.append(final)
        data = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    return data, tuple(torch.stack(part) for part in zip(*finals, strict=True))


def all_fused(
    layers: "ParallelRecurrence", sequences: Sequences, before: States
) -> tuple[Tensor | PackedSequence, States]:
    """All layers in torch's operator."""
    packed = sequences.packed
    if sequences.data.shape[1] == 0:  # which torch refuses
        width = layers.hidden_size * layers.directions
        return sequences.restore(sequences.data.new_empty(sequences.count, 0, width)), before
    weights = [weight for cell in layers.cells for weight in torch_weights(cell)]
    data = sequences.data if packed is None else packed.data
    data, *rest = cast_inputs(data, *before, *weights)
    # cuDNN takes no strides of states.
    states = [s.to(data.dtype).contiguous() for s in rest[: layers.parts]]
    weights = rest[layers.parts :]
    with suspended(data):
        outputs, after = fused_rnn(
            layers.kind,
            data,
            None if packed is None else packed.batch_sizes,
            states,
            weights,
            bias=layers.bias,
            bidirectional=layers.bidirectional,
            dropout=layers.dropout if layers.training else 0.0,
        )
    if packed is not None:
        return packed._replace(data=outputs), after
    return sequences.restore(outputs), after


def _unchanged(x: Tensor) -> Tensor:
    return x
