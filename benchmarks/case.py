"""What is measured: a case is a problem of one size, a peer somebody who solves it.

A suite is a list of cases. A case makes its workload (inputs and oracle) only when its turn comes,
and the workload builds each peer's call, so that a machine holds one case's tensors at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

Call = Callable[[], object]
Kind = Literal["time", "memory"]


class Unavailable(Exception):  # noqa: N818 - it says why a peer does not take part, and is no fault
    """A peer cannot take part in a case; the message is the reason that the result records."""


class Work(NamedTuple):
    """The least that any implementation must do.

    Attributes:
        flop: floating-point operations of the matrix products.
        bytes: every input read once and every output written once.
    """

    flop: float
    bytes: float


class Check(NamedTuple):
    """How far a peer's result is from the oracle's, ‖result − oracle‖ / ‖oracle‖.

    A workload may measure it otherwise, and says so: an evaluation in bits per byte.

    Attributes:
        error: the worst over the outputs and gradients.
        tolerance: the largest that passes; a NaN never does.
        values: the result itself where it is a few numbers, for the reader.
    """

    error: float
    tolerance: float
    values: Sequence[float] | None = None

    @property
    def passes(self) -> bool:
        return self.error <= self.tolerance


class Workload(Protocol):
    """A case's inputs and its oracle."""

    def build(self, peer: str) -> Call:
        """The call that is timed.

        Raises:
            Unavailable: the peer cannot take part.
        """
        ...

    def check(self, peer: str) -> Check:
        """The peer's result against the oracle's, on fresh inputs of the same sizes."""
        ...


@runtime_checkable
class MoreFigures(Protocol):
    """A workload that knows more of a peer than its time."""

    def figures(self, peer: str) -> dict[str, float]:
        """Figures for the result, by name; asked before anything is timed."""
        ...


@dataclass(frozen=True)
class Case:
    """A problem of one size.

    Attributes:
        name: unique in the suite, `/` between its parts.
        parameters: its sizes and options, for the result and its reader.
        work: the least work, for the roofline.
        peers: names that the workload knows.
        make: makes the workload.
        figure: the picture it belongs to; none if empty.
        x: the parameter on that picture's horizontal axis.
        kind: whether time is measured, or the peak memory of one call in a process of its own.
        rounds: how often each peer is timed at least; fewer where a call takes seconds.
    """

    name: str
    parameters: Mapping[str, Any]
    work: Work
    peers: tuple[str, ...]
    make: Callable[[], Workload]
    figure: str = ""
    x: str = "keys"
    kind: Kind = "time"
    rounds: int = 5


@dataclass(frozen=True)
class Suite:
    """Cases and what they are to show.

    Attributes:
        name: as on the command line.
        cases: in the order in which they run.
        goals: judges the results; see `benchmarks.goals`.
        options: what the cases were made from.
    """

    name: str
    cases: tuple[Case, ...]
    goals: Callable[[Any], list[dict[str, Any]]]
    options: Mapping[str, Any] = field(default_factory=dict)
