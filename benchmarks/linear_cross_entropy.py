"""The workload of the vocabulary loss: inputs, peers' calls, and the definition in float64.

    loss = mean over valid t of  logsumexp_v(h_t · e_v) − h_t · e_{y_t}
    dh_t = Σ_v (p_tv − [v = y_t]) e_v / valid,   de_v = Σ_t (p_tv − [v = y_t]) h_t / valid

The oracle takes every logsumexp in float64, by chunks of tokens, and compares all of the loss.
Of the gradients it makes some rows: of `hidden` for some tokens, of `weight` for columns that are
somebody's target and for others, which are compared apart: the first are so much larger that the
second would not show in one norm.

A peer that skips probabilities below the dtype's resolution leaves rows of the second kind empty on
purpose. There all rows are compared as one, with a tolerance of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check
from benchmarks.token_distributions import CHUNK, Distribution, draw

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
IGNORE_INDEX = -100
CHECKED_ROWS = 64
WAKING_TOKENS, WAKING_COLUMNS = 512, 2048


class Tolerance(NamedTuple):
    """Of the loss and its gradients, and the same of a peer that skips what rounds away."""

    exact: float
    skipping: float


# A loss that torch sums in bfloat16 is 1 to 2 % off, and gradients of the weight that are summed in
# bfloat16 over chunks of tokens are 1 to 3 %; a chunk of 128 tokens that is left out is 10 %.
# Materialised in float32, after training, torch's are 1.5e-4 off at 4096 tokens.
TOLERANCES = {
    torch.bfloat16: Tolerance(5e-2, 1e-1),
    torch.float16: Tolerance(1e-2, 5e-2),
    torch.float32: Tolerance(1e-3, 1e-3),
}


@dataclass(frozen=True)
class LossShape:
    """Sizes of a problem.

    Attributes:
        distribution: what is drawn; see `token_distributions`.
        ignored: the share of targets that are not to be learned, at random places.
        backward: whether the gradients of hidden states and weight are computed too.
    """

    tokens: int
    dim: int
    vocabulary: int
    dtype: torch.dtype
    device: str
    distribution: Distribution = "initial"
    ignored: float = 0.0
    backward: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return torch.empty((), dtype=self.dtype).element_size()

    @property
    def valid(self) -> int:
        """Tokens whose target is to be learned."""
        return self.tokens - int(self.ignored * self.tokens)

    @property
    def gradient_mib(self) -> float:
        """What the gradients of hidden states and weight take; no peer can do with less."""
        return (self.tokens + self.vocabulary) * self.dim * self.itemsize / 2**20

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class LossWorkload:
    """Inputs of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        hidden: (tokens, dim).
        weight: (vocabulary, dim).
        targets: (tokens,), `IGNORE_INDEX` where nothing is to be learned.
    """

    def __init__(self, shape: LossShape) -> None:
        self.shape = s = shape
        generator = torch.Generator(device=s.device).manual_seed(0)
        hidden, weight, self.targets = draw(
            s.distribution, s.tokens, s.dim, s.vocabulary, generator
        )
        self.hidden = hidden.to(s.dtype).requires_grad_(s.backward)
        self.weight = weight.to(s.dtype).requires_grad_(s.backward)
        order = torch.randperm(s.tokens, generator=generator, device=s.device)
        self.targets[order[s.valid :]] = IGNORE_INDEX
        self._losses: dict[str, Loss] = {}

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers.linear_cross_entropy import build

        self._losses[peer] = loss = build(peer, self)
        if self.shape.device == "cpu":
            self._wake(loss)
        if self.shape.backward:
            return lambda: self._gradients(loss)
        return lambda: self._value(loss)

    def check(self, peer: str) -> Check:
        """The loss, and some rows of the gradients."""
        from benchmarks.peers.linear_cross_entropy import SKIPPING

        tolerance, loss = TOLERANCES[self.shape.dtype], self._losses[peer]
        if not self.shape.backward:
            return Check(distance(self._value(loss), self._loss), tolerance.exact)
        value, hidden_grad, weight_grad = self._gradients(loss)
        found = hidden_grad[self._rows], *(weight_grad[columns] for columns in self._columns)
        expected, allowed = self._expected_gradients, tolerance.exact
        if peer in SKIPPING:
            found, expected = ((x[0], torch.cat(x[1:])) for x in (found, expected))
            allowed = tolerance.skipping
        of_loss = distance(value.detach(), self._loss)
        return Check(worst([of_loss, *map(distance, found, expected)]), allowed)

    def _wake(self, loss: Loss) -> None:
        """Runs a small part, so that what libraries set up once is no memory of the loss's."""
        hidden, weight = (
            x.detach()[:some].clone().requires_grad_()
            for x, some in ((self.hidden, WAKING_TOKENS), (self.weight, WAKING_COLUMNS))
        )
        loss(hidden, weight, torch.zeros_like(self.targets[: len(hidden)])).backward()

    def _gradients(self, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients."""
        value = loss(self.hidden, self.weight, self.targets)
        hidden_grad, weight_grad = torch.autograd.grad(value, (self.hidden, self.weight))
        return value, hidden_grad, weight_grad

    @torch.no_grad()
    def _value(self, loss: Loss) -> Tensor:
        return loss(self.hidden, self.weight, self.targets)

    @cached_property
    def _wide_weight(self) -> Tensor:
        return self.weight.detach().double()

    @cached_property
    def _valid(self) -> Tensor:
        """(tokens,) 1 where something is to be learned, 0 elsewhere; divided by their number."""
        valid = self.targets.ne(IGNORE_INDEX).double()
        return valid / valid.sum()

    @cached_property
    def _logsumexp(self) -> Tensor:
        """Float64 (tokens,)."""
        return torch.cat(
            [
                (chunk.double() @ self._wide_weight.T).logsumexp(-1)
                for chunk in self.hidden.detach().split(CHUNK)
            ]
        )

    @cached_property
    def _loss(self) -> Tensor:
        targets = self._wide_weight[self.targets.clamp_min(0)]
        logits = (self.hidden.detach().double() * targets).sum(-1)
        return ((self._logsumexp - logits) * self._valid).sum()

    @cached_property
    def _rows(self) -> Tensor:
        """Tokens whose gradients are compared: first, last, and others."""
        return _some(self.shape.tokens, self.shape.device)

    @cached_property
    def _columns(self) -> list[Tensor]:
        """Columns that are somebody's target, and columns that are nobody's if there are any."""
        is_target = torch.zeros(self.shape.vocabulary, dtype=torch.bool)
        is_target[self.targets[self.targets != IGNORE_INDEX].cpu()] = True
        groups = [group.nonzero().squeeze(1) for group in (is_target, ~is_target)]
        return [
            group[_some(len(group), "cpu")].to(self.shape.device) for group in groups if len(group)
        ]

    @cached_property
    def _expected_gradients(self) -> tuple[Tensor, ...]:
        """Float64 rows of the gradient of `hidden`, then those of `weight` by kind of column."""
        rows, hidden = self._rows, self.hidden.detach().double()
        errors = self._errors(hidden[rows], self._wide_weight, rows, torch.arange(len(self.weight)))
        of_weight = (
            self._errors(hidden, self._wide_weight[columns], slice(None), columns).T @ hidden
            for columns in self._columns
        )
        return errors @ self._wide_weight, *of_weight

    def _errors(
        self, hidden: Tensor, weight: Tensor, rows: Tensor | slice, columns: Tensor
    ) -> Tensor:
        """(p − [v = y]) / valid of some tokens at some columns."""
        probabilities = (hidden @ weight.T - self._logsumexp[rows, None]).exp()
        hits = self.targets[rows, None] == columns.to(self.targets.device)
        return (probabilities - hits.double()) * self._valid[rows, None]


def _some(count: int, device: str) -> Tensor:
    """Up to `CHECKED_ROWS` of `count` rows: the first, the last and others, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, count - 1])[: min(count, 2)]
    return torch.cat((ends, order[: CHECKED_ROWS - 2])).unique().to(device)
