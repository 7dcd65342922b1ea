"""`solve`: all states of a nonlinear recurrence, and the truth about how well they fit."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.solvers import validation
from ropewalk.blocks.recurrent.solvers.choice import chosen
from ropewalk.blocks.recurrent.solvers.gradients import Gradient, applied, with_gradient
from ropewalk.blocks.recurrent.solvers.info import TOLERANCE, Attempt, SolveInfo, report
from ropewalk.blocks.recurrent.solvers.kernel import fused
from ropewalk.blocks.recurrent.solvers.layout import Layout
from ropewalk.blocks.recurrent.solvers.methods import Method, Sequential, named
from ropewalk.blocks.recurrent.solvers.probe import check_first_states, probe
from ropewalk.blocks.recurrent.solvers.sequential import sequential
from ropewalk.blocks.recurrent.solvers.system import System, greatest
from ropewalk.blocks.recurrent.solvers.windows import Course, Limits, solve_in_windows
from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.newton_scan.problem import Algorithm


def solve(
    cell: Cell,
    inputs: Float[Tensor, "batch time dim"],
    initial_state: Float[Tensor, "sequences ..."] | None = None,
    *,
    guess: Float[Tensor, "batch time ..."] | None = None,
    method: str | Method = "auto",
    window: int | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    cu_seqlens: Int[Tensor, " sequences+1"] | None = None,
    strict: bool = False,
    gradient: Gradient = "implicit",
) -> tuple[Float[Tensor, "batch time ..."], SolveInfo]:
    """All states h_t = f(h_{t−1}, x_t) of a recurrence.

    The states are those of stepping through time, whatever the method. A window that does not
    converge keeps the states that have; the rest is tried again with half the window, and at last
    one step after another. A `RecurrenceWarning` says so, once a process for each kind, and the
    info says it always.

    The gradient is that of the solution (implicit function theorem), of inputs, parameters, also
    those that a function closes over, and initial states; once and in reverse. It keeps the states,
    of cells that are not built in the Jacobians, too, and nothing of the iterations. It takes the
    Jacobian as the cell declares it, so that states may be right while gradients are not. Of a cell
    that is not built in, the first solution therefore compares it with derivatives of the step at a
    few positions; `check_cell` does so more thoroughly.

    Args:
        cell: f.
        inputs: x, finite.
        initial_state: h_0 of each sequence, (sequences, *cell.state_shape); zeros if None.
        guess: of all states, where iterations start; None takes the state before each window.
        method: "newton", "quasi", "jacobi", "picard", "fixed", "first_order", "clip", "scale",
            "elk", "sequential", or an object with options, such as `Clip(bound=0.5)`, are iterated
            in torch; "auto" takes what is fastest: the fused scan for built-in diagonal cells, for
            others newton or sequential by the rules of
            `ropewalk.blocks.recurrent.solvers.choice`.
        window: how many steps are solved at once. None begins with all of them and leaves the
            sizes of the next to the solver; a number is kept unless a window fails.
        tolerance: of the residual, relative to states above 1 in size; None is 2e-6 in float32,
            1e-12 in float64, and 4 eps in half precision, whose states are calculated in float32
            and then rounded. The iteration that meets it is followed by one more; with None,
            methods of linear convergence go on while the residual falls, because their error may
            be a multiple of it.
        max_iterations: how many a window may take before it is cut. None is as many as it has
            steps, which always suffice but for elk; with window=None 64, and only while the
            residual falls. A sequential solution takes none.
        cu_seqlens: where packed sequences begin, and the end of the last; the batch is then 1.
        strict: raise instead of trying another way, except in "auto", whose ways are its choice.
        gradient: "implicit"; or "diagonal", which takes the diagonal of the Jacobian and is
            *biased* for dense and block2 cells, for studies; by how much is measured in
            `ropewalk.blocks.recurrent.solvers.gradients`.

    Returns:
        The states after each step, in the dtype of `cell.project(inputs)`, and a `SolveInfo`.

    Raises:
        ConvergenceError: strict, and a window did not converge, or what was found does not fit.
        ValueError: NaN or infinity in inputs, states or weights; sizes, dtypes, devices, options
            that do not fit; an unknown method; a cell of one's own whose step has another shape
            or dtype, takes no leading dimensions, or has another Jacobian than is declared.
        TypeError: an argument of the wrong kind.

    Source: kexue.fm/archives/9783; DEER, arXiv 2309.12252; ELK, arXiv 2407.19115; ParaRNN, arXiv
    2510.21450.

    Example:
        >>> cell = DiagonalGRUCell(8, 16)
        >>> states, info = solve(cell, torch.randn(2, 100, 8))
        >>> states.shape, info.converged
        (torch.Size([2, 100, 16]), True)
    """
    way = method if method == "auto" else named(method)
    system = prepare(cell, inputs, initial_state, guess, cu_seqlens)
    narrow = system.drive.dtype
    validation.check_options(
        window=window,
        tolerance=tolerance,
        max_iterations=max_iterations,
        strict=strict,
        gradient=gradient,
        dtype=narrow,
    )
    validation.check_finite("cell.project(inputs)", system.drive, "look at the cell's weights")
    validation.check_concrete(system.drive)
    limit = TOLERANCE[narrow] if tolerance is None else tolerance
    limits = Limits(window, limit, max_iterations, not strict, tolerance is None)
    with suspended(system.drive):
        check_first_states(widened(system))
        if way == "auto" and cell.kernel is not None and guess is None and gradient == "implicit":
            states, info = _fused(system, "auto", limits)
        elif isinstance(way, Sequential) and cell.kernel is not None and gradient == "implicit":
            states, info = _fused(system, "sequential", limits)
        else:
            if isinstance(way, str):
                way = chosen(system, guess)
                # The other choice was steps in turn: on a CPU they are better than more tries.
                on_cpu = system.drive.device.type == "cpu"
                smallest = system.layout.time if on_cpu else limits.smallest
                limits = replace(limits, retry=True, smallest=smallest)
            states, info = _in_torch(system, way, guess, limits, gradient)
    if not math.isfinite(info.residual):
        validation.check_weights(cell)
    asked = way if isinstance(way, str) else way.name
    report(info, asked, strict, choice=method == "auto")
    return states, info


def prepare(
    cell: Cell,
    inputs: Tensor,
    initial_state: Tensor | None,
    guess: Tensor | None,
    cu_seqlens: Tensor | None,
    *,
    finite: bool = True,
) -> System:
    """The equations, after what can be wrong with them was looked at.

    Args:
        cell: see `solve`, as all but the last.
        inputs: x.
        initial_state: h_0.
        guess: of all states.
        cu_seqlens: boundaries.
        finite: whether NaN and infinity are refused.
    """
    validation.check_cell_kind(cell)
    drive = cell.project(validation.check_inputs(inputs, finite))
    validation.check_states(cell, inputs, drive, initial_state, guess, cu_seqlens, finite)
    layout = Layout.of(drive.shape[0], drive.shape[1], cu_seqlens)
    if initial_state is None:
        initial_state = drive.new_zeros(layout.sequences, *cell.state_shape)
    system = System(cell, drive, initial_state, layout)
    with suspended(drive):
        probe(widened(system))
    return system


def widened(system: System) -> System:
    """In the dtype that is calculated in: float32 for half precision, if the cell can."""
    dtype = wide(system.drive.dtype) if system.cell.mixed_precision else system.drive.dtype
    return replace(system, drive=system.drive.to(dtype), initial=system.initial.to(dtype))


def _fused(system: System, algorithm: Algorithm, limits: Limits) -> tuple[Tensor, SolveInfo]:
    """By the fused scan, whose result is measured like any other."""
    states, course = fused(system, algorithm, limits)
    residual = _residual(widened(system), states)
    if not residual <= limits.tolerance and course.iterations:
        time = system.layout.time
        course.failed.append(Attempt(0, time, course.iterations, residual, 0))
        if limits.retry:
            states, _ = fused(system, "sequential", limits)
            residual = _residual(widened(system), states)
            course.sequential_from = 0
    name = "newton" if course.iterations else "sequential"
    return states, course.info(name, residual, limits.tolerance, "newton_scan")


def _in_torch(
    system: System, method: Method, guess: Tensor | None, limits: Limits, gradient: Gradient
) -> tuple[Tensor, SolveInfo]:
    """By any method, for any cell; the gradient is that of the solution."""
    narrow, system = system.drive.dtype, widened(system).prepared()
    dtype = system.drive.dtype
    # What is rounded afterwards is calculated as well as it would be without.
    inner = limits if dtype == narrow else limits.at_most(TOLERANCE[dtype])
    with torch.no_grad():
        fixed = replace(system, drive=system.drive.detach(), initial=system.initial.detach())
        if isinstance(method, Sequential):
            found, course = sequential(fixed), Course(windows=min(1, system.layout.time))
        else:
            start = None if guess is None else guess.detach().to(dtype)
            found, course = solve_in_windows(fixed, method, start, inner)
    made = applied(system, found)
    residual = greatest(found, made)
    unfit = not residual <= inner.tolerance and limits.retry
    if unfit and course.sequential_from is None and not isinstance(method, Sequential):
        # Every window met its tolerance, and the correction that followed spoilt it by rounding.
        with torch.no_grad():
            found, course.sequential_from = sequential(fixed), 0
        made = applied(system, found)
        residual = greatest(found, made)
    states = found
    if made.requires_grad:
        states = with_gradient(system, found, made, gradient)
    if dtype != narrow:
        states = states.to(narrow)
        residual = _residual(system, states)
    return states, course.info(method.name, residual, limits.tolerance, "torch")


def _residual(system: System, states: Tensor) -> float:
    """Of states as they are returned."""
    with torch.no_grad():
        states = states.detach().to(system.drive.dtype)
        return greatest(states, system.step(system.previous(states)))
