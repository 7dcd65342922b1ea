"""What a solver is: one step from t to s, and what it needs to know for it.

A solver is a small frozen object of parameters. It says for which kinds of process it is defined
and whether it takes a stochasticity; `sample` checks both before the model runs. What a multistep
method remembers travels beside the state, so that a solver itself never changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.diffusion.predict import Prediction
from ropewalk.blocks.diffusion.process import Affine, Process
from ropewalk.blocks.diffusion.step import universal_step

State = Num[Tensor, "batch ..."]
Moment = Float[Tensor, ""]
"""A time: 0-d, float64, on the CPU."""

AFFINE = frozenset({"gaussian", "poisson_flow"})
"""Processes x_t = αx₀ + σε."""
EVERY = AFFINE | {"cold", "mask", "edit"}


class Span(NamedTuple):
    """The times of a step.

    Attributes:
        t: where it begins.
        s: where it ends, below t.
        lands: whether it is the last one and ends on the data, s = 0. Where a schedule keeps some
            noise at t = 0 (Karras' σ_min), that is where it is taken away.
    """

    t: Moment
    s: Moment
    lands: bool


@dataclass(frozen=True)
class Run:
    """What all steps of one call of `sample` share.

    Attributes:
        process: how data is corrupted.
        predict: the guided model, from (x_t, t) to a `Prediction`.
        stochasticity: in [0, 1].
        temperature: of the draws of discrete processes.
        generator: of everything that is drawn.
    """

    process: Process
    predict: Callable[[State, Moment], Prediction]
    stochasticity: float
    temperature: float = 1.0
    generator: torch.Generator | None = None

    def data(self, x: State, t: Moment) -> tuple[State, Prediction]:
        """(x̂₀, what it was drawn from)."""
        prediction = self.predict(x, t)
        drawn = self.process.draw(
            prediction.data, x, t, temperature=self.temperature, generator=self.generator
        )
        return drawn, prediction

    def normal(self, x: State) -> State:
        """Standard normal numbers of x's shape."""
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)

    def move(self, x: State, x0: State, span: Span, rho: Moment | float) -> State:
        """The universal step; of affine processes it lands on x̂₀ itself."""
        if span.lands and isinstance(self.process, Affine):
            return x0
        return universal_step(self.process, x, x0, span.t, span.s, rho, generator=self.generator)


class Stepped(NamedTuple):
    """After a step.

    Attributes:
        x: the state at s.
        x0: x̂₀, as it was predicted at t.
        memory: what the next step is given; None for one-step methods.
    """

    x: State
    x0: State
    memory: Any = None


@dataclass(frozen=True)
class Solver(ABC):
    """Base class of solvers.

    Attributes:
        name: by which `sample` knows it.
        kinds: the kinds of process that it is defined for.
        stochasticity: what it takes if nothing is said; None for solvers that take none.
        order: of the local error's decay, plus one, with no stochasticity: by how much halving the
            steps divides what is left, as a power of two.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    stochasticity: ClassVar[float | None]
    order: ClassVar[int]

    @abstractmethod
    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        """From x at span.t to span.s; memory is None at the first step."""

    def refuse(self, process: Process, times: Tensor, stochasticity: float) -> None:
        """Raises a ValueError if this solver is not defined for such a run; called before it."""
        if process.kind not in self.kinds:
            raise ValueError(
                f"solver {self.name!r} is defined for the processes {sorted(self.kinds)}, got "
                f"{process.kind!r}; 'euler' is defined for all"
            )
