"""Solvers: how `sample` goes from one time to the next.

solver.py       Solver and Run: one step, and what it needs to know
universal.py    euler, ancestral, renoise: the universal step with one ρ or another
heun.py         heun: EDM's Algorithm 2
dpmpp.py        dpmpp_2m: DPM-Solver++(2M)
sde.py          sde: Euler–Maruyama of the family between flow and reverse SDE
coordinates.py  in which the flow is smooth
variance.py     the variance that a network learned
"""

from ropewalk.blocks.diffusion.checks import described
from ropewalk.blocks.diffusion.solvers.dpmpp import DPMPlusPlus2M
from ropewalk.blocks.diffusion.solvers.heun import Heun
from ropewalk.blocks.diffusion.solvers.sde import SDE
from ropewalk.blocks.diffusion.solvers.solver import Run, Solver, Span, Stepped
from ropewalk.blocks.diffusion.solvers.universal import Ancestral, Euler, Renoise

SOLVERS: dict[str, Solver] = {
    each.name: each for each in (Euler(), Ancestral(), Heun(), DPMPlusPlus2M(), SDE(), Renoise())
}
"""All solvers by name, with their defaults."""


def named(which: str | Solver) -> Solver:
    """The solver of that name, or the object itself.

    Raises:
        ValueError: no solver has that name.
        TypeError: neither a name nor a `Solver`.
    """
    if isinstance(which, Solver):
        return which
    if not isinstance(which, str):
        instance = (
            f"; take an instance, {which.__name__}()"
            if isinstance(which, type) and issubclass(which, Solver)
            else ""
        )
        raise TypeError(f"solver: expected a name or a Solver, got {described(which)}{instance}")
    if which not in SOLVERS:
        raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, got {which!r}")
    return SOLVERS[which]


__all__ = [
    "Ancestral",
    "DPMPlusPlus2M",
    "Euler",
    "Heun",
    "Renoise",
    "Run",
    "SDE",
    "SOLVERS",
    "Solver",
    "Span",
    "Stepped",
    "named",
]
