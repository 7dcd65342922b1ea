"""Dense layers in torch's own fused operators: cuDNN on a GPU, loops of products elsewhere.

Steps of a dense cell are products of matrices, and to solve for all of them at once costs a product
of Jacobians each; taking the steps in turn wins wherever it was measured. Under a compiler torch
would unroll its loops over time; there an operator of our own keeps them whole, and computes them
once more in the backward.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FUNCTIONS = {"gru": torch.gru, "lstm": torch.lstm, "tanh": torch.rnn_tanh}
CELLS = {"gru": torch.gru_cell, "lstm": torch.lstm_cell, "tanh": torch.rnn_tanh_cell}
UNCOMPACTED = "RNN module weights are not part of single contiguous chunk of memory"


def fused_rnn(
    kind: str,
    data: Float[Tensor, "batch time dim"] | Float[Tensor, "rows dim"],
    batch_sizes: Int[Tensor, " time"] | None,
    states: Sequence[Float[Tensor, "layers batch hidden"]],
    weights: Sequence[Tensor],
    *,
    bias: bool,
    bidirectional: bool,
    dropout: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A stack of layers.

    Args:
        kind: "gru", "lstm" or "tanh".
        data: a batch, or the rows of a `PackedSequence`.
        batch_sizes: its own, if it was packed; none under a compiler.
        states: h, of an LSTM h and c, of every layer and direction.
        weights: weight_ih, weight_hh and the biases of every layer and direction.
        bias: whether there are biases.
        bidirectional: whether there are two directions.
        dropout: of the outputs of all layers but the last; 0 where none is wanted.

    Returns:
        The outputs and the final states.
    """
    if torch.compiler.is_compiling():
        return _layer_by_layer(kind, data, states, weights, bias, bidirectional, dropout)
    return run(kind, data, batch_sizes, states, weights, bias, bidirectional, dropout)


def run(
    kind: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    bidirectional: bool,
    dropout: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`fused_rnn` by torch's function."""
    layers = states[0].shape[0] // (2 if bidirectional else 1)
    before = list(states) if kind == "lstm" else states[0]
    # "Train": cuDNN keeps what its backward needs also where a model in eval mode is trained.
    train = torch.is_grad_enabled() or dropout > 0
    options = (list(weights), bias, layers, dropout, train, bidirectional)
    with _uncompacted(data):
        if batch_sizes is not None:
            outputs, *after = FUNCTIONS[kind](data, batch_sizes, before, *options)
        else:
            outputs, *after = FUNCTIONS[kind](data, before, *options, True)
    return outputs, tuple(after)


@contextmanager
def _uncompacted(data: Tensor) -> Iterator[None]:
    """Keeps cuDNN from warning that weights which are made anew for each call lie apart."""
    if not data.is_cuda:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNCOMPACTED)
        yield


def fused_step(
    kind: str, inputs: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One step of one layer: the states after it."""
    before = list(states) if kind == "lstm" else states[0]
    after = CELLS[kind](inputs, before, *weights)
    return tuple(after) if kind == "lstm" else (after,)


def _layer_by_layer(
    kind: str,
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`fused_rnn` by the operator, whose dropout is outside, because it computes twice."""
    directions = 2 if bidirectional else 1
    layers, each = states[0].shape[0] // directions, (4 if bias else 2) * directions
    finals = []
    for layer in range(layers):
        if layer > 0 and dropout > 0:
            data = torch.nn.functional.dropout(data, dropout)
        mine = [s[layer * directions : (layer + 1) * directions] for s in states]
        outputs, h, c = torch_rnn_op(
            kind,
            data,
            mine,
            list(weights[layer * each : (layer + 1) * each]),
            bias,
            bidirectional,
        )
        data = outputs
        finals.append((h, c) if kind == "lstm" else (h,))
    return data, tuple(torch.cat(states) for states in zip(*finals, strict=True))


@torch.library.custom_op("ropewalk::torch_rnn", mutates_args=())
def torch_rnn_op(
    kind: str,
    data: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: outputs, h and c (empty but of an LSTM)."""
    outputs, after = run(kind, data, None, states, weights, bias, bidirectional)
    h, c = after if kind == "lstm" else (*after, data.new_empty(0))
    # Results of an operator may not be views of each other.
    return outputs.contiguous(), h.clone(), c.clone()


@torch_rnn_op.register_fake
def _(
    kind: str,
    data: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    c = torch.empty_like(states[1]) if kind == "lstm" else data.new_empty(0)
    h = states[0].new_empty(states[0].shape)
    return data.new_empty((*data.shape[:-1], width)), h, c


@torch.library.custom_op("ropewalk::torch_rnn_backward", mutates_args=())
def torch_rnn_backward_op(
    kind: str,
    data: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    bias: bool,
    bidirectional: bool,
    grads: list[Tensor],
) -> list[Tensor]:
    """Gradients of data, states and weights, in this order."""
    with _above_autograd():
        leaves = [x.detach().requires_grad_() for x in (data, *states, *weights)]
        before, parameters = leaves[1 : 1 + len(states)], leaves[1 + len(states) :]
        outputs, after = run(kind, leaves[0], None, before, parameters, bias, bidirectional)
        found = torch.autograd.grad((outputs, *after), leaves, grads[: 1 + len(after)])
    return [x.contiguous() for x in found]


@contextmanager
def _above_autograd() -> Iterator[None]:
    """Lets autograd see what an operator does, which runs below it.

    torch.func would see it anyway, but cuDNN's and oneDNN's operators look into their tensors'
    memory, which wrapped ones do not have.
    """
    core: Any = torch._C  # without types for this
    keys = core.DispatchKey
    excluded = core._dispatch_tls_local_exclude_set()
    for key in (keys.AutogradFunctionality, keys.AutogradOther, keys.ADInplaceOrView):
        excluded = excluded.remove(key)
    included = core._dispatch_tls_local_include_set()
    with core._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


@torch_rnn_backward_op.register_fake
def _(
    kind: str,
    data: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    *_: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (data, *states, *weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    kind, data, states, weights, *options = inputs
    ctx.save_for_backward(data, *states, *weights)
    ctx.kind, ctx.options, ctx.states = kind, options, len(states)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    data, *rest = ctx.saved_tensors
    states, weights = rest[: ctx.states], rest[ctx.states :]
    found = torch_rnn_backward_op(ctx.kind, data, states, weights, *ctx.options, list(grads))
    return (
        None,
        found[0],
        found[1 : 1 + ctx.states],
        found[1 + ctx.states :],
        None,
        None,
    )


torch_rnn_op.register_autograd(_backward, setup_context=_setup_context)
