"""The workloads of recurrences: linear ones, and those of a cell with or without its projection.

A cell's problem is the scan alone, from what each gate gets to the states, or a layer of equal
width: y of x (batch, time, width), the inputs' projection included, as torch's own GRU has it.

The oracle is the recurrence in float64, one step after another; gradients come from the steps'
Jacobians by autograd and one loop of the adjoint, again one step after another. Of a linear
recurrence a few channels are compared, first to last, over all of time: channels know nothing of
each other. A peer that computes another function, as torch's GRU, which has dense recurrent
matrices, brings its own oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check

TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 5e-5}
COMPARED = 8
"""Channels of a linear recurrence."""
GATES = {"tanh": 1, "gru": 3, "lstm": 3}
ROWS = {"tanh": 1, "gru": 4, "lstm": 5}
"""Of recurrent weights."""


@dataclass(frozen=True)
class RecurrentShape:
    """Sizes of a problem.

    Attributes:
        kind: "linear", or a cell: "tanh", "gru", "lstm".
        channels: of the states; a layer's inputs are as wide.
        projected: whether it is a layer and not the scan alone.
        backward: whether all gradients are computed too.
    """

    kind: str
    batch: int
    time: int
    channels: int
    dtype: torch.dtype
    device: str
    projected: bool = False
    backward: bool = False

    @property
    def parts(self) -> int:
        """Numbers of a state and channel."""
        return 2 if self.kind == "lstm" else 1

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class Layer(NamedTuple):
    """What a peer computes.

    Attributes:
        function: states of the tensors, in this layout or in the peer's own.
        tensors: what it gets, and what gets gradients.
        expected: states, and gradients if they are wanted, in float64 and of the peer's layout; of
            a linear recurrence of the compared channels only.
        tolerance: other than that of the dtype.
        shown: what is compared of a tensor.
        states_grad: in a layout of the peer's own.
    """

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    expected: Callable[[], list[Tensor]]
    tolerance: float | None = None
    shown: Callable[[Tensor], Tensor] = lambda x: x
    states_grad: Tensor | None = None


class RecurrentWorkload:
    """Inputs of one shape, and what each peer makes of them."""

    def __init__(self, shape: RecurrentShape) -> None:
        self.shape = s = shape
        self._generator = torch.Generator(device=s.device).manual_seed(0)
        self.tensors = self._linear() if s.kind == "linear" else self._cell()
        state = (s.parts, s.channels) if s.parts == 2 else (s.channels,)
        self.states_grad = self.draw(s.batch, s.time, *state).detach()
        self._layers: dict[str, Layer] = {}

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, which want a gradient if the problem does."""
        drawn = torch.randn(shape, generator=self._generator, device=self.shape.device)
        return self.leaf(scale * drawn)

    def leaf(self, x: Tensor) -> Tensor:
        """In the dtype of the problem, wanting a gradient if the problem does."""
        return x.detach().to(self.shape.dtype).requires_grad_(self.shape.backward)

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers.recurrent import build

        self._layers[peer] = layer = build(peer, self)
        return lambda: self._outcome(layer)

    def check(self, peer: str) -> Check:
        """The states and all gradients."""
        layer = self._layers[peer]
        pairs = zip(self._outcome(layer), layer.expected(), strict=True)
        errors = [distance(layer.shown(found.detach()), exact) for found, exact in pairs]
        return Check(worst(errors), layer.tolerance or TOLERANCES[self.shape.dtype])

    def expected(self) -> list[Tensor]:
        """The definition, made once for all peers that compute it."""
        return self._expected

    def compared(self, x: Tensor) -> Tensor:
        """The channels of a linear recurrence that are compared, at the end of the dimensions."""
        return x[..., self._channels]

    def _outcome(self, layer: Layer) -> list[Tensor]:
        if not self.shape.backward:
            with torch.no_grad():
                return [layer.function(*layer.tensors)]
        states = layer.function(*layer.tensors)
        upstream = self.states_grad if layer.states_grad is None else layer.states_grad
        return [states, *torch.autograd.grad(states, layer.tensors, upstream)]

    def _linear(self) -> tuple[Tensor, ...]:
        s = self.shape
        gate = torch.sigmoid(self.draw(s.batch, s.time, s.channels).detach().float() + 2)
        return self.leaf(gate), self.draw(s.batch, s.time, s.channels)

    def _cell(self) -> tuple[Tensor, ...]:
        """Inputs or x and its projection, then the recurrent weights."""
        s, gates = self.shape, GATES[self.shape.kind]
        weights = self.draw(ROWS[s.kind], s.channels, scale=0.3)
        if not s.projected:
            return self.draw(s.batch, s.time, gates, s.channels), weights
        return (
            self.draw(s.batch, s.time, s.channels),
            self.draw(gates * s.channels, s.channels, scale=s.channels**-0.5),
            self.draw(gates * s.channels, scale=0.1),
            weights,
        )

    @cached_property
    def _channels(self) -> Tensor:
        count = min(COMPARED, self.shape.channels)
        return torch.linspace(0, self.shape.channels - 1, count, device=self.shape.device).long()

    @cached_property
    def _expected(self) -> list[Tensor]:
        if self.shape.kind == "linear":
            a, b, v = (
                self.compared(t.detach()).double() for t in (*self.tensors, self.states_grad)
            )
            states = _recurrence(a, b)
            if not self.shape.backward:
                return [states]
            # g_t = v_t + a_(t+1) g_(t+1): the same recurrence from the end.
            shifted = functional.pad(a[:, 1:], (0, 0, 0, 1))
            g = _recurrence(shifted.flip(1), v.flip(1)).flip(1)
            return [states, g * functional.pad(states[:, :-1], (0, 0, 1, 0)), g]
        wide = [t.detach().double().requires_grad_() for t in self.tensors]
        return exact(self.shape, wide, self.states_grad.double())


def step(kind: str, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """One step of a cell, x (…, gates, channels), w (rows, channels)."""
    if kind == "tanh":
        return torch.tanh(x[..., 0, :] + w[0] * h)
    if kind == "gru":
        r = torch.sigmoid(x[..., 0, :] + w[0] * h)
        z = torch.sigmoid(x[..., 1, :] + w[1] * h)
        n = torch.tanh(x[..., 2, :] + r * (w[2] * h + w[3]))
        return n + z * (h - n)
    c, h = h.unbind(-2)
    f = torch.sigmoid(x[..., 0, :] + w[0] * h + w[3] * c)
    z = torch.tanh(x[..., 1, :] + w[1] * h)
    new = z + f * (c - z)
    o = torch.sigmoid(x[..., 2, :] + w[2] * h + w[4] * new)
    return torch.stack([new, o * torch.tanh(new)], dim=-2)


def gate_inputs(shape: RecurrentShape, tensors: Any) -> Tensor:
    """(batch, time, gates, channels): given, or projected from x."""
    if not shape.projected:
        return tensors[0]
    x, weight, bias, _ = tensors
    return functional.linear(x, weight, bias).unflatten(-1, (-1, shape.channels))


def exact(shape: RecurrentShape, tensors: list[Tensor], states_grad: Tensor) -> list[Tensor]:
    """States of a cell and, where wanted, gradients of the tensors, in their dtype."""
    inputs, weights = gate_inputs(shape, tensors), tensors[-1]
    state = torch.zeros_like(states_grad[:, 0])
    states = torch.empty_like(states_grad)
    with torch.no_grad():
        for t in range(shape.time):
            state = states[:, t] = step(shape.kind, inputs[:, t], state, weights)
    if not shape.backward:
        return [states]
    # All steps at once from the states before them; a state's entries of one channel only meet.
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1).requires_grad_()
    after = step(shape.kind, inputs, before, weights)
    rows = after.unbind(-2) if shape.parts == 2 else (after,)
    slopes = [torch.autograd.grad(row.sum(), before, retain_graph=True)[0] for row in rows]
    g = torch.zeros_like(states_grad[:, 0])
    adjoint = torch.empty_like(states_grad)
    for t in reversed(range(shape.time)):
        adjoint[:, t] = states_grad[:, t] + g
        if shape.parts == 1:
            g = slopes[0][:, t] * adjoint[:, t]
        else:
            g = sum(slopes[i][:, t] * adjoint[:, t, i : i + 1] for i in range(2))
    return [states, *torch.autograd.grad(after, tensors, adjoint)]


def _recurrence(a: Tensor, b: Tensor) -> Tensor:
    """x_t = a_t x_(t−1) + b_t from zeros."""
    x, states = torch.zeros_like(b[:, 0]), torch.empty_like(b)
    for t in range(b.shape[1]):
        x = states[:, t] = a[:, t] * x + b[:, t]
    return states
