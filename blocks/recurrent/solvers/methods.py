"""The methods: each is a choice of Ã_t in one iteration of a linearised recurrence.

    h_t ← f(h^k_{t−1}, x_t) + Ã_t (h_{t−1} − h^k_{t−1})

    jacobi       0                              one application of f to all states
    picard       1                              a cumulative sum
    fixed        A = J(0; 0)                    Su; diagonalised: a complex scan in A's eigenbasis
    first_order  J(0; x_t)                      Su's first-order form; of the tanh cell sech²(u_t) A
    newton       J_t                            DEER; quadratic convergence
    quasi        diag J_t                       quasi-DEER; linear time and memory for dense cells
    clip         J_t, each entry in [−b, b]     cannot overflow for b ≤ 1 and diagonal J
    scale        (1 − k) J_t                    between newton and jacobi
    elk          a trust region, see `trust_region`

For any Ã the first k states are exact after k iterations (of the trust region only without
damping). Computed as a correction, d_t = (f_t − h^k_t) + Ã_t d_{t−1} and h_t ← f_t + Ã_t d_{t−1}:
near the solution d is small and so is its rounding, and a state that becomes exact is f itself.

Sources: kexue.fm/archives/9783 (fixed, first-order); arXiv 2309.12252 (DEER); arXiv 2407.19115
(quasi-DEER, ELK); arXiv 2510.21450 (clipped and scaled Jacobians).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_number, require_positive
from ropewalk.blocks.recurrent.solvers.eigenbasis import Eigenbasis
from ropewalk.blocks.recurrent.solvers.system import System, diagonal_of, times
from ropewalk.blocks.recurrent.solvers.trust_region import trust_region_step


@dataclass(frozen=True)
class Method:
    """One way to improve a guess of all states.

    Attributes:
        name: what strings call it.
        finite: whether the first k states are exact after k iterations.
        quadratic: whether the error is about squared in each iteration near the solution.
    """

    name: ClassVar[str]
    finite: ClassVar[bool] = True
    quadratic: ClassVar[bool] = False

    def prepare(self, system: System) -> Any:
        """What all iterations on a system share."""
        return None

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        """The next guess.

        Args:
            system: the equations.
            guess: h^k, (batch, time, *state_shape).
            made: f(h^k_{t−1}, x_t).
            prepared: of `prepare`.
        """
        raise NotImplementedError

    def _corrected(
        self, system: System, guess: Tensor, made: Tensor, a: Tensor, structure: str
    ) -> Tensor:
        correction = system.scan(a, made - guess, structure=structure)
        return made + times(a, system.layout.previous(correction), structure)


@dataclass(frozen=True)
class Sequential(Method):
    """No iteration: one step after another. On a CPU the fastest for one's own cells."""

    name = "sequential"


@dataclass(frozen=True)
class Jacobi(Method):
    """Ã = 0. Contracts by ‖J‖ in each iteration."""

    name = "jacobi"

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        return made


@dataclass(frozen=True)
class Picard(Method):
    """Ã = 1: as the fixed-point iteration of an ODE, for states that change little in a step."""

    name = "picard"

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        return made + system.layout.previous(
            system.scan(_one(guess), made - guess, structure="elementwise")
        )


@dataclass(frozen=True)
class Fixed(Method):
    """Ã = A, the Jacobian at h = 0 and drive 0: of the tanh cell its weight. Contracts for ‖A‖ < ½.

    Attributes:
        diagonalise: whether the scan is a diagonal, complex one, in the eigenbasis of A. A must
            have one; the result is the same.
    """

    diagonalise: bool = False
    name = "fixed"

    def __post_init__(self) -> None:
        if not isinstance(self.diagonalise, bool):
            raise TypeError(f"Fixed.diagonalise: expected True or False, got {self.diagonalise!r}")

    def prepare(self, system: System) -> Tensor | Eigenbasis:
        zero = system.initial.new_zeros(1, 1, *system.cell.state_shape)
        drive = torch.zeros_like(system.drive[:1, :1])
        if drive.numel() == 0:
            drive = system.drive.new_zeros(1, 1, *system.drive.shape[2:])
        a = system.cell.jacobian(zero, drive)
        if self.diagonalise and system.cell.structure != "diagonal":
            return Eigenbasis.of(a[0, 0], system.cell.structure)
        return a

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        if isinstance(prepared, Eigenbasis):
            correction = prepared.scan(made - guess, system.layout.cu_seqlens)
            return made + prepared.times(system.layout.previous(correction))
        return self._corrected(system, guess, made, prepared, system.cell.structure)


@dataclass(frozen=True)
class FirstOrder(Method):
    """Ã_t = J(0; x_t): the Jacobian at state zero, computed once."""

    name = "first_order"

    def prepare(self, system: System) -> Tensor:
        shape = (*system.drive.shape[:2], *system.cell.state_shape)
        return system.jacobian(system.initial.new_zeros(shape))

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        return self._corrected(system, guess, made, prepared, system.cell.structure)


@dataclass(frozen=True)
class Newton(Method):
    """Ã_t = J_t. Converges quadratically; may overflow on its way where ‖J‖ > 1."""

    name = "newton"
    quadratic = True

    def changed(self, jacobian: Tensor) -> Tensor:
        """The Jacobian as the method takes it."""
        return jacobian

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        a = self.changed(system.jacobian(system.previous(guess)))
        return self._corrected(system, guess, made, a, system.cell.structure)


@dataclass(frozen=True)
class Clip(Newton):
    """Newton with each entry of J_t clamped to [−bound, bound].

    Attributes:
        bound: of entries.
    """

    bound: float = 1.0
    name = "clip"
    quadratic = False

    def __post_init__(self) -> None:
        require_positive("Clip", bound=self.bound)

    def changed(self, jacobian: Tensor) -> Tensor:
        return jacobian.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Scale(Newton):
    """Newton with (1 − by) J_t: by = 0 is Newton, by = 1 Jacobi.

    Attributes:
        by: how much is taken away, in [0, 1].
    """

    by: float = 0.5
    name = "scale"
    quadratic = False

    def __post_init__(self) -> None:
        require_number("Scale", "a number in [0, 1]", by=self.by)
        if not 0 <= self.by <= 1:
            raise ValueError(f"Scale.by: expected a number in [0, 1], got {self.by!r}")

    def changed(self, jacobian: Tensor) -> Tensor:
        return (1 - self.by) * jacobian


@dataclass(frozen=True)
class Quasi(Method):
    """Ã_t = diag J_t: of a diagonal cell Newton; of others cheaper, and of linear convergence."""

    name = "quasi"

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        a = diagonal_of(system.jacobian(system.previous(guess)), system.cell.structure)
        return self._corrected(system, guess, made, a, "elementwise")


@dataclass(frozen=True)
class Elk(Method):
    """Levenberg–Marquardt with the diagonal of J_t: a step that is penalised by λ |h − h^k|².

    Cannot overflow, whatever J; see `ropewalk.blocks.recurrent.solvers.trust_region`.

    Attributes:
        damping: λ. Not exactly 0, which is `Quasi`.
        adaptive: whether λ shrinks with the residual, damping · min(1, mean square of the chain's):
            convergence is then that of `Quasi`, else linear with a factor of about λ / (λ + σ²), σ
            the smallest singular value of the linearised equations. The greatest residual instead
            of the mean would hold all of a chain back for one step of it.
    """

    damping: float = 1.0
    adaptive: bool = True
    name = "elk"
    finite = False

    def __post_init__(self) -> None:
        require_positive("Elk", damping=self.damping)
        if not isinstance(self.adaptive, bool):
            raise TypeError(f"Elk.adaptive: expected True or False, got {self.adaptive!r}")

    def update(self, system: System, guess: Tensor, made: Tensor, prepared: Any) -> Tensor:
        a = diagonal_of(system.jacobian(system.previous(guess)), system.cell.structure)
        return trust_region_step(system.layout, a, guess, made, self._damping(guess, made))

    def _damping(self, guess: Tensor, made: Tensor) -> Tensor:
        damping = guess.new_full((), self.damping)
        if not self.adaptive:
            return damping
        relative = (guess - made) / guess.abs().clamp_min(1)
        least = math.sqrt(torch.finfo(guess.dtype).tiny)
        return (damping * (relative**2).mean(1, keepdim=True).clamp_max(1)).clamp_min(least)


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Newton,
        Quasi,
        Jacobi,
        Picard,
        Fixed,
        FirstOrder,
        Clip,
        Scale,
        Elk,
        Sequential,
    )
}


def named(method: str | Method) -> Method:
    """A method by its name, with its defaults, or as it is given.

    Raises:
        ValueError: an unknown name.
        TypeError: neither.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method: expected a name or an object such as Newton(), got {type(method).__name__}"
        )
    if method not in METHODS:
        raise ValueError(f"method: expected one of auto, {', '.join(METHODS)}, got {method!r}")
    return METHODS[method]()


def _one(like: Tensor) -> Tensor:
    return like.new_ones(()).expand(like.shape)
