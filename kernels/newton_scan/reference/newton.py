"""Newton's method inside windows of time; the last state of a window is carried into the next.

With r_t = f(h_(t−1), x_t) − h_t at the guess h and J_t there, an iteration adds the solution of

    δ_t = J_t δ_(t−1) + r_t,    δ_0 = 0

and the next guess is f(h_(t−1), x_t) + J_t δ_(t−1): steps that are exact stay as they are, to the
bit, and the one after them becomes exact however far off its guess was. After k iterations the
first k steps are exact: as many iterations as a window has steps always end exact. A guess may be
so far off that δ overflows although the sequence is stable (|J| > 1 along the guess, not along the
solution). There the state becomes f(h_(t−1), x_t), which is bounded, and exact as soon as the step
before it is.

A window that is not given starts as all of time, and shrinks where that does not end soon: what is
exact by then is kept. Where the choice of the algorithm is free too, the rest is then done in turn,
which takes a fraction of the time that iterating in short windows does.
"""

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure
from ropewalk.kernels.linear_scan.reference.chunks import scan
from ropewalk.kernels.newton_scan.cells import Cell
from ropewalk.kernels.newton_scan.problem import Options
from ropewalk.kernels.newton_scan.reference.sequential import sequential

PATIENCE = 12
"""Iterations after which a window that nobody asked for is cut."""
SMALLEST = 32
"""Steps of the shortest window that nobody asked for."""


def newton(
    cell: Cell,
    x: Tensor,
    w: Tensor,
    initial: Tensor,
    options: Options,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """States, iterations and residuals, see `Scanned`.

    Args:
        cell: the formulas.
        x: (batch, time, gates, channels).
        w: (rows, channels).
        initial: (batch, …), the states before.
        options: window, tolerance and iterations.
        lengths: (batch,), the steps of each row; what comes after them is padding, which nothing is
            reported of.
    """
    batch, time, _, channels = x.shape
    states = x.new_empty(batch, time, *initial.shape[1:])
    iterations = torch.zeros(batch, channels, dtype=torch.int32, device=x.device)
    residual = torch.zeros(batch, channels, dtype=x.dtype, device=x.device)
    if states.numel() == 0:
        return states, iterations, residual.float()
    padding = None
    if lengths is not None:
        padding = torch.arange(time, device=x.device) >= lengths.unsqueeze(1)
    start, window = 0, options.window or time
    while start < time:
        part = slice(start, min(start + window, time))
        steps = part.stop - start
        patience = options.limit(steps)
        adaptive = options.window is None and steps > SMALLEST and patience > PATIENCE
        if adaptive:
            patience = PATIENCE
        beyond = None if padding is None else padding[:, part]
        taken, r = _iterate(
            cell, x[:, part], w, initial, states[:, part], options, patience, beyond
        )
        used, done = int(taken.max()), steps
        if adaptive and used == patience:
            told = r.masked_fill(_lost(initial).view(batch, 1, *(1,) * (r.ndim - 3), channels), 0)
            done = _exact(told, used, options.residual_limit(x.dtype))
            window = max(SMALLEST, min(window // 2, 2 * done))
        elif options.window is None and used <= PATIENCE // 2:
            window *= 2
        iterations = torch.maximum(iterations, taken)
        residual = torch.maximum(residual, _by_chain(r[:, :done]))
        start += done
        initial = states[:, start - 1]
        if done < steps and options.algorithm == "auto":
            states[:, start:] = sequential(cell, x[:, start:], w, initial)
            break
    return states, iterations, residual.float()


def _iterate(
    cell: Cell,
    x: Tensor,
    w: Tensor,
    initial: Tensor,
    states: Tensor,
    options: Options,
    patience: int,
    padding: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fills the states of a window.

    Returns:
        The iterations that each chain took, (batch, channels), and residuals of the shape of the
        states: those that the last iteration met and corrected if they were within the tolerance,
        else those that are left.
    """
    structure: Structure = "diagonal" if cell.parts == 1 else "block2"
    most = None
    if padding is not None:
        # So many iterations as a row has steps end exact, though others go on.
        most = (~padding).sum(1, dtype=torch.int32).unsqueeze(1)
        padding = padding.view(*padding.shape, *(1,) * initial[0].ndim)
    tolerance = options.residual_limit(x.dtype)
    states.copy_(initial.unsqueeze(1).expand_as(states))
    none, r = torch.zeros_like(initial), states
    taken = torch.zeros(x.shape[0], x.shape[-1], dtype=torch.int32, device=x.device)
    # After a state that is not a number all of them are such, as the guess is.
    running = (~_lost(initial)).int()
    for _ in range(patience):
        previous = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
        new, jacobian = cell.linearise(x, previous, w)
        r = _without(new - states, padding)
        change = scan(structure, jacobian, r, none, reverse=False)
        guess = new + (change - r)
        states.copy_(torch.where(guess.isfinite(), guess, new))
        taken += running
        running *= ~(_by_chain(r) <= tolerance)  # NaN goes on
        if not running.any():
            break
    else:
        previous = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
        r = _without(cell.step(x, previous, w) - states, padding)
    return taken if most is None else taken.minimum(most), r


def _without(r: Tensor, padding: Tensor | None) -> Tensor:
    """Residuals of steps, 0 of padding."""
    return r if padding is None else r.masked_fill(padding, 0)


def _lost(state: Tensor) -> Tensor:
    """Chains that are not a number, (batch, channels)."""
    return state.isnan() if state.ndim == 2 else state.isnan().all(dim=1)


def _by_chain(r: Tensor) -> Tensor:
    """The greatest residual of each chain, (batch, channels)."""
    size = r.abs().amax(dim=1)
    return size if size.ndim == 2 else size.amax(dim=1)


def _exact(r: Tensor, iterations: int, tolerance: float) -> int:
    """Steps before the first that is not exact in some chain; at least one for each iteration."""
    bad = ~(r.abs() <= tolerance).flatten(2).all(-1).all(0)
    first = int(bad.int().argmax()) if bool(bad.any()) else r.shape[1]
    return max(first, iterations)
