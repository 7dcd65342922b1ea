"""`iterate`: what a method has after exactly k iterations over all of time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.solvers.methods import Method, Sequential, named
from ropewalk.blocks.recurrent.solvers.solve import prepare, widened
from ropewalk.kernels.autocast import suspended


def iterate(
    cell: Cell,
    inputs: Float[Tensor, "batch time dim"],
    initial_state: Float[Tensor, "sequences ..."] | None = None,
    *,
    method: str | Method,
    iterations: int,
    guess: Float[Tensor, "batch time ..."] | None = None,
    cu_seqlens: Int[Tensor, " sequences+1"] | None = None,
) -> Float[Tensor, "batch time ..."]:
    """The states after k iterations: a model of its own, and a look at how methods converge.

    The first k states are exact, except those of elk; the others are what the method has by then,
    which may be far off, or not finite: nothing is checked, windowed or replaced. Gradients are
    those of the iterations themselves, by autograd through each of them. It can be compiled.

    Args:
        cell: f.
        inputs: x, finite.
        initial_state: h_0 of each sequence, (sequences, *cell.state_shape); zeros if None.
        method: see `solve`; there is nothing to iterate in "auto" and "sequential".
        iterations: k.
        guess: of all states, to start with; None is the initial state everywhere.
        cu_seqlens: where packed sequences begin, and the end of the last; the batch is then 1.

    Returns:
        The states, in the dtype of `cell.project(inputs)`.

    Raises:
        ValueError: as `solve`; iterations below 1.
        TypeError: an argument of the wrong kind.

    Source: kexue.fm/archives/9783, whose closing suggestion is a fixed number of iterations.

    Example:
        >>> cell, inputs = TanhCell(8), torch.randn(2, 100, 8)
        >>> iterate(cell, inputs, method="newton", iterations=3).shape
        torch.Size([2, 100, 8])
    """
    return iterated(
        cell,
        inputs,
        initial_state,
        method=method,
        iterations=iterations,
        guess=guess,
        cu_seqlens=cu_seqlens,
        finite=True,
    )


def iterated(
    cell: Cell,
    inputs: Tensor,
    initial_state: Tensor | None,
    *,
    method: str | Method,
    iterations: int,
    guess: Tensor | None,
    cu_seqlens: Tensor | None,
    finite: bool,
) -> Tensor:
    """`iterate`, which refuses NaN and infinity only if `finite`: layers let them pass."""
    require_integer("iterate", 1, iterations=iterations)
    if isinstance(method, str) and method == "auto":
        raise ValueError("method: expected the name of an iteration, got 'auto'; try 'newton'")
    way = named(method)
    if isinstance(way, Sequential):
        raise ValueError("method: expected an iteration, got 'sequential'; use solve(…)")
    system = prepare(cell, inputs, initial_state, guess, cu_seqlens, finite=finite)
    narrow = system.drive.dtype
    with suspended(system.drive):
        system = widened(system)
        if not torch.compiler.is_compiling():  # it finds what is made twice by itself
            system = system.prepared()
        states = system.guess() if guess is None else guess.to(system.drive.dtype)
        if system.layout.time == 0:
            return states.to(narrow)
        prepared = way.prepare(system)
        for _ in range(iterations):
            made = system.step(system.previous(states))
            states = way.update(system, states, made, prepared)
    return states.to(narrow)
