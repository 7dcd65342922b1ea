"""The workload of rotary attention: inputs, peers' calls, and an oracle of a few rows.

The oracle computes on its own: for some queries it rotates that row and all keys in float64, to the
positions that the rule's definition gives each pair (definitions.py), and takes one softmax. What
it takes from the library are a rule's parameters, the frequencies, and the edges near which rows
are chosen. Rows cost little even at 128k keys. To check gradients the same way, the incoming
gradient is zero but for those rows; the timed gradient is dense.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Call, Check
from benchmarks.definitions import pieces
from ropewalk.blocks.rotary import Plain, RotaryEmbedding
from ropewalk.kernels.rotary_attention import DistanceRule

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
CHECKED_ROWS = 48
COPY = "copy"
"""The peer that computes no attention but copies the keys."""
# Attention in bfloat16, cosines in bfloat16 too as models have them, is 0.5 to 0.8 % off; a wrong
# branch, a missing rotation or a dropped tile is off by tens of percent.
TOLERANCES = {torch.bfloat16: (1e-2, 2e-2), torch.float16: (2e-3, 4e-3)}
FLOAT32_TOLERANCES = (1e-3, 2e-3)


@dataclass(frozen=True)
class Shape:
    """Sizes of a problem; the last query sits at the last key.

    Attributes:
        rule: the distance rule.
        backward: whether the gradients of query, key and value are computed too.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: torch.dtype
    device: str
    rule: DistanceRule
    backward: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        sizes = {
            name: value for name, value in self.__dict__.items() if name not in ("dtype", "rule")
        }
        return {
            **sizes,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rule": describe(self.rule),
        }


def describe(rule: DistanceRule) -> dict[str, Any]:
    """A rule's name and parameters."""
    name = getattr(rule, "name", type(rule).__name__)
    parameters = asdict(rule) if is_dataclass(rule) and not isinstance(rule, type) else {}
    return {"name": name, **parameters}


class AttentionWorkload:
    """Inputs of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        rotary: the rotary embedding, default frequencies.
        query, key, value: random, unrotated.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rotary = RotaryEmbedding(shape.head_dim).to(shape.device)
        self.generator = torch.Generator(device=shape.device).manual_seed(0)
        s = shape
        self.query = self._random(s.heads, s.queries, 1.0)
        self.key = self._random(s.kv_heads, s.keys, 1.0)
        self.value = self._random(s.kv_heads, s.keys, 1.0)
        self._forwards: dict[str, Forward] = {}

    def _random(self, heads: int, length: int, scale: float) -> Tensor:
        s = self.shape
        size = (s.batch, heads, length, s.head_dim)
        drawn = torch.randn(size, generator=self.generator, device=s.device) * scale
        return drawn.to(s.dtype).requires_grad_(s.backward)

    @property
    def query_positions(self) -> Tensor:
        """(query,), the last at the last key."""
        first = self.shape.keys - self.shape.queries
        return torch.arange(first, self.shape.keys, device=self.shape.device)

    @property
    def key_positions(self) -> Tensor:
        return torch.arange(self.shape.keys, device=self.shape.device)

    @cached_property
    def grad_output(self) -> Tensor:
        return self._random(self.shape.heads, self.shape.queries, 1.0).detach()

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers import attention_peer

        self._forwards[peer] = forward = attention_peer(peer, self)
        inputs = (self.query, self.key, self.value)
        if self.shape.backward:
            grad_output = self.grad_output
            return lambda: torch.autograd.grad(forward(*inputs), inputs, grad_output)
        return lambda: _without_autograd(forward, inputs)

    def check(self, peer: str) -> Check:
        """The peer's output on some rows, and gradients that flow through those rows only."""
        from benchmarks.peers import rule_of

        rule, rows = rule_of(peer, self.shape.rule), self._rows
        forward, inputs = self._forwards[peer], (self.query, self.key, self.value)
        if peer.partition(":")[0] == COPY:
            return Check(distance(_without_autograd(forward, inputs), self.key.double()), 0.0)
        if not self.shape.backward:
            output = _without_autograd(forward, inputs)[:, :, rows]
            expected = self._oracle(rule, *inputs)
            return Check(distance(output, expected), self._tolerances[0])
        output = forward(*inputs)
        sparse = torch.zeros_like(output)
        sparse[:, :, rows] = self.grad_output[:, :, rows]
        grads = torch.autograd.grad(output, inputs, sparse)
        del sparse
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        expected = self._oracle(rule, *wide)
        error = distance(output.detach()[:, :, rows], expected)
        expected_grads = torch.autograd.grad(expected, wide, self.grad_output[:, :, rows].double())
        # One bound for output and gradients: the output's error is scaled to the gradients'.
        ratio = self._tolerances[1] / self._tolerances[0]
        errors = [error * ratio, *map(distance, grads, expected_grads)]
        return Check(worst(errors), self._tolerances[1])

    @property
    def _tolerances(self) -> tuple[float, float]:
        return TOLERANCES.get(self.shape.dtype, FLOAT32_TOLERANCES)

    @cached_property
    def _rows(self) -> Tensor:
        """Queries that are checked: first, last, on both sides of every edge, and some others."""
        queries = self.shape.queries
        first = self.shape.keys - queries
        edges = [edge * self.shape.rule.unit - first for edge in self.shape.rule.edges]
        wanted = {0, 1, queries - 2, queries - 1}
        wanted |= {edge + step for edge in edges for step in (-1, 0, 1)}
        chosen = {row for row in wanted if 0 <= row < queries}
        generator = torch.Generator().manual_seed(1)
        for row in torch.randint(queries, (4 * CHECKED_ROWS,), generator=generator).tolist():
            if len(chosen) >= CHECKED_ROWS:
                break
            chosen.add(row)
        return torch.tensor(sorted(chosen), device=self.shape.device)

    def _oracle(self, rule: DistanceRule, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Float64 (batch, heads, rows, head_dim)."""
        s, rows = self.shape, self._rows
        grouped = (s.batch, s.kv_heads, s.heads // s.kv_heads, len(rows))
        chosen = query[:, :, rows].double()
        wide_key, wide_value = key.double(), value.double()
        scores = torch.zeros((), dtype=torch.float64, device=query.device)
        at, keys_at = self.query_positions[rows], self.key_positions
        for piece in pieces(rule, at, keys_at):
            turned = self._turn(chosen, piece.query)
            turned_key = self._turn(wide_key, piece.key)
            # Heads of a group are rows of one product, so that no key is copied.
            dots = turned.reshape(*grouped[:2], -1, s.head_dim) @ turned_key.mT
            scores = torch.where(piece.holds, dots.view(*grouped, s.keys), scores)
        hidden = at[:, None] < keys_at
        weights = (scores / s.head_dim**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        output = weights.view(*grouped[:2], -1, s.keys) @ wide_value
        return output.view(s.batch, s.heads, len(rows), s.head_dim)

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """R^positions x as a product of complex numbers; half layout."""
        frequencies = self.rotary.inverse_frequencies().to(x.device)
        # Angles are float32 products by definition; from there on all is float64.
        angles = (positions.float()[:, None] * frequencies).double()
        first, second = x.chunk(2, -1)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)


@torch.no_grad()
def _without_autograd(forward: Forward, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return forward(*inputs)


def distance(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖."""
    expected = expected.detach()
    return float((result.double() - expected).norm() / expected.norm())


def worst(errors: list[float]) -> float:
    """The greatest; NaN if one is."""
    return max(errors) if all(error == error for error in errors) else float("nan")


PLAIN = Plain()
