"""Iterating inside windows of time, each of which starts from the last state of the one before.

After as many iterations as a window has steps it is exact, whatever the method but elk, so that
smaller windows bound the iterations, and keep a method from overflowing: on the stress cells of the
tests windows of 64 do. A window that does not converge keeps the states that have, its *prefix*;
what follows is tried again with half the window, and below `SMALLEST` steps one by one. That always
ends.

A guess may be non-finite on its way; such states are replaced by f of the guess before, so that
they cannot spoil the next iteration. What is exact already is finite.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ropewalk.blocks.recurrent.solvers.info import Attempt, SolveInfo
from ropewalk.blocks.recurrent.solvers.methods import Method
from ropewalk.blocks.recurrent.solvers.sequential import sequential
from ropewalk.blocks.recurrent.solvers.system import System, residuals

SMALLEST = 8
"""Windows below this are not tried: a step is then cheaper than an iteration."""

ITERATIONS = 64
"""That a window may take if nothing else is said; those that need more are better cut."""

PATIENCE = 8
"""Iterations in which the residual of a window of more than ITERATIONS steps must halve, or the
window is cut."""

IDLE, FALLING = 3, 0.95
"""Iterations in which the residual of what fits already must fall by this factor, or it is as good
as rounding allows. Where it falls by ρ in each, the error is about 1/(1 − ρ) of it."""


@dataclass(frozen=True)
class Limits:
    """What a user allows.

    Attributes:
        window: steps of a window; None starts with all of them.
        tolerance: of the residual.
        max_iterations: of a window; None is its steps, or at most ITERATIONS and only while the
            residual falls if `window` is None.
        retry: whether windows that do not converge are cut. Otherwise the first ends it all.
        thorough: whether iterations of linear convergence go on below the tolerance.
        smallest: window that is tried; what is left below it is computed in turn. If that is all of
            time, it is computed from its start, and equals the sequential solution to the last bit
            even where the recurrence is chaotic.
    """

    window: int | None
    tolerance: float
    max_iterations: int | None
    retry: bool
    thorough: bool = True
    smallest: int = SMALLEST

    def at_most(self, tolerance: float) -> "Limits":
        """The same with a tolerance that is not above this."""
        return replace(self, tolerance=min(self.tolerance, tolerance))

    @property
    def patient(self) -> bool:
        """Whether a window may take all its iterations, whatever its residual does."""
        return self.window is not None or self.max_iterations is not None

    def iterations(self, steps: int) -> int:
        """That a window of so many steps may take."""
        if self.max_iterations is not None:
            return min(steps, self.max_iterations)
        return steps if self.patient else min(steps, ITERATIONS)

    def patience(self, steps: int) -> int:
        """Iterations without progress after which a window of so many steps is given up."""
        return steps if self.patient or steps <= ITERATIONS else PATIENCE


@dataclass
class Course:
    """What happened on the way; see `SolveInfo`."""

    iterations: int = 0
    total_iterations: int = 0
    windows: int = 0
    failed: list[Attempt] = field(default_factory=list)
    sequential_from: int | None = None

    def info(self, method: str, residual: float, tolerance: float, backend: str) -> SolveInfo:
        """All of it, with the residual of what is returned.

        Args:
            method: that was tried.
            residual: of what is returned.
            tolerance: of the residual.
            backend: see `SolveInfo`.
        """
        in_turn = self.sequential_from == 0
        return SolveInfo(
            iterations=0 if in_turn else self.iterations,
            residual=residual,
            converged=residual <= tolerance,
            method="sequential" if in_turn else method,
            windows=1 if in_turn else self.windows,
            tolerance=tolerance,
            total_iterations=self.total_iterations,
            failed=tuple(self.failed),
            sequential_from=self.sequential_from,
            backend=backend,
        )


@dataclass(frozen=True)
class _Outcome:
    states: Tensor
    iterations: int
    residual: float
    kept: int
    """Steps from the first on that fit: as well as rounding allows, if the window failed."""


def solve_in_windows(
    system: System, method: Method, guess: Tensor | None, limits: Limits
) -> tuple[Tensor, Course]:
    """All states, and how they were found.

    Args:
        system: the equations.
        method: any but `Sequential`.
        guess: (batch, time, *state_shape), where iterations start; None is the state before the
            window.
        limits: where a window that does not converge may not be cut, its states are returned as
            they are, and guesses after it.
    """
    time, course = system.layout.time, Course()
    cu_seqlens = system.layout.cu_seqlens
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    size = time if limits.window is None else min(limits.window, time)
    pieces, start, carry = [], 0, system.initial
    while start < time:
        stop = min(start + size, time)
        here = system.window(start, stop, carry, bounds)
        begin = here.guess() if guess is None else guess[:, start:stop]
        found = _iterate(here, method, begin, limits)
        course.total_iterations += found.iterations
        kept, whole = found.kept, found.kept == stop - start
        if not whole:
            course.failed.append(Attempt(start, stop, found.iterations, found.residual, found.kept))
            size = (stop - start) // 2
            if not limits.retry:
                kept = stop - start
            elif limits.smallest >= time:
                kept = 0
        if kept:
            course.iterations = max(course.iterations, found.iterations)
            course.windows += 1
            pieces.append(found.states[:, :kept])
            carry, start = found.states[:, kept - 1], start + kept
        if whole or start == time:
            continue
        if not limits.retry:
            pieces.append((system.guess() if guess is None else guess)[:, stop:])
            break
        if size < limits.smallest:
            course.sequential_from, course.windows = start, course.windows + 1
            pieces.append(sequential(system.window(start, time, carry, bounds)))
            break
    return (torch.cat(pieces, 1) if pieces else system.guess()), course


def _iterate(system: System, method: Method, states: Tensor, limits: Limits) -> _Outcome:
    """Improves the states of one window until they fit, or until it seems no use.

    Within the tolerance of the equations is not yet within it of the solution. What converges
    quadratically is there after one iteration more; others go on while their residual falls, if the
    tolerance was nobody's wish.
    """
    steps = states.shape[1]
    prepared, limit, patience = method.prepare(system), limits.iterations(steps), limits.patience
    rounding = torch.finfo(states.dtype).eps
    exact = min(limits.tolerance, 8 * rounding) if limits.thorough else limits.tolerance
    best, best_at, iterations, last = math.inf, 0, 0, False
    least, least_at = math.inf, 0
    while True:
        if last:
            return _Outcome(states, iterations, best, steps)
        made = system.step(system.previous(states))
        by_step = residuals(states, made)
        residual = float(by_step.max())
        if residual < FALLING * least:
            least, least_at = residual, iterations
        fits, spent = residual <= limits.tolerance, iterations >= limit
        settled = residual <= rounding or iterations - least_at >= IDLE
        enough = residual <= exact or iterations >= steps or not limits.retry
        if fits and (settled or (spent and enough)):
            return _Outcome(states, iterations, residual, steps)
        if spent or iterations - best_at >= patience(steps):
            # What follows on these states has no further iteration to correct them.
            kept = int((by_step <= exact).cumprod(0).sum())
            return _Outcome(states, iterations, residual, kept)
        if residual < best / 2:
            best, best_at = residual, iterations
        last = fits and (method.quadratic or not limits.thorough)
        states = _finite(method.update(system, states, made, prepared), made)
        iterations += 1


def _finite(states: Tensor, made: Tensor) -> Tensor:
    made = torch.nan_to_num(made, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.where(states.isfinite(), states, made)
