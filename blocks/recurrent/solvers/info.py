"""What a solver tells about itself: `SolveInfo`, and the error and the warning for bad news."""

import warnings
from dataclasses import dataclass

import torch


class RecurrenceWarning(UserWarning):
    """A recurrence was not solved as it was asked for; the result is right unless it says
    otherwise.

    Each kind is given once in a process. `warnings.filterwarnings("error",
    category=RecurrenceWarning)` makes it an error.
    """


class ConvergenceError(RuntimeError):
    """A recurrence was not solved within its limits, and strict=True forbids another way.

    Attributes:
        info: the `SolveInfo` of what was reached.
    """

    def __init__(self, message: str, info: "SolveInfo") -> None:
        super().__init__(message)
        self.info = info


@dataclass(frozen=True)
class Attempt:
    """A window that did not converge, and was cut down.

    Attributes:
        start: its first step; of packed sequences, in the packed order.
        stop: the step after its last.
        iterations: that it took.
        residual: what was left; infinite if a state was not finite.
        kept: how many of its first states had converged, and were kept.
    """

    start: int
    stop: int
    iterations: int
    residual: float
    kept: int


@dataclass(frozen=True)
class SolveInfo:
    """How a recurrence was solved.

    Attributes:
        iterations: the most that a window took which was kept; 0 if nothing was iterated.
        residual: greatest |h_t − f(h_{t−1}, x_t)| / max(1, |h_t|) of the states that are returned;
            infinite if one is not finite.
        converged: residual ≤ tolerance.
        method: what the states came from: "newton", …, or "sequential", also where another method
            was asked for and all of its states were given up (`sequential_from` is then 0). States
            that it gave up later are told by `sequential_from`.
        windows: how many pieces of time were solved one after another; 0 if there is no time. The
            fused scan does not tell: as many as the window that was asked for makes, or 1.
        tolerance: of the residual.
        total_iterations: of all windows, failed ones as well.
        failed: windows that were cut down, in order.
        sequential_from: the step from which on states were computed one by one because the method
            did not converge; None if it did.
        backend: "newton_scan" if the fused kernel solved it, else "torch".
    """

    iterations: int
    residual: float
    converged: bool
    method: str
    windows: int
    tolerance: float
    total_iterations: int = 0
    failed: tuple[Attempt, ...] = ()
    sequential_from: int | None = None
    backend: str = "torch"


TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
"""Of the residual of what is returned. States in half precision are calculated in float32, to its
tolerance; what is left is their rounding."""


CHECK = "a wrong Jacobian of one's own cell is another cause, which check_cell finds"


def report(info: SolveInfo, asked: str, strict: bool, *, choice: bool) -> None:
    """Says what did not go as it was asked for: as a warning, or as an error.

    Args:
        info: what happened.
        asked: the name of the method that was tried.
        strict: whether it is an error.
        choice: whether the method was the solver's choice; only the result counts then.

    Raises:
        ConvergenceError: strict, and a window failed or the states do not fit.
    """
    as_asked = choice or (not info.failed and info.sequential_from is None)
    if info.converged and as_asked:
        return
    found = f"residual {info.residual:.3g}, tolerance {info.tolerance:.3g}"
    if strict:
        first = info.failed[0] if info.failed else None
        where = (
            ""
            if first is None
            else (
                f" in steps {first.start} to {first.stop} after {first.iterations} iterations "
                f"({first.residual:.3g} left)"
            )
        )
        raise ConvergenceError(
            f"{asked}: expected convergence, got {found}{where}; {_mend(asked)}; {CHECK}",
            info,
        )
    if not info.converged:
        _warn_once(
            "unconverged",
            f"{asked}: the states that are returned do not satisfy the recurrence, {found}; see "
            f"SolveInfo; {CHECK}",
        )
    elif info.sequential_from is not None:
        _warn_once(
            f"{asked} sequential",
            f"{asked} did not converge; from step {info.sequential_from} on, states were "
            "computed one after another. The result is right, but slow: take another method or "
            f"a bounded cell; {CHECK}. Given once",
        )
    else:
        _warn_once(
            f"{asked} halved",
            f"{asked} did not converge in steps {info.failed[0].start} to "
            f"{info.failed[0].stop}, and windows were halved. The result is right; a smaller "
            f"window= saves the failed tries; {CHECK}. Given once",
        )


def _mend(asked: str) -> str:
    if asked == "sequential":
        return "what it was may be different at every call, or overflow: look at the cell"
    others = "'sequential'" if asked in ("newton", "auto") else "'newton' or 'sequential'"
    return f"take a smaller window, more iterations, method={others}, or strict=False"


_told: set[str] = set()


def _warn_once(kind: str, message: str) -> None:
    if kind not in _told:
        _told.add(kind)
        warnings.warn(message, RecurrenceWarning, stacklevel=4)


def forget_warnings() -> None:
    """Lets every kind of warning be given again."""
    _told.clear()
