"""What method="auto" takes.

    built-in diagonal cells    the fused scan, which chooses between Newton and steps in turn itself
    others, on a CPU           sequential: a step is a few operations on little data, and a parallel
                               iteration computes Jacobians besides
    others, on a GPU           newton from SHORTEST steps on, where a step's launches take longer
                               than an iteration over all of time; dense cells up to WIDEST numbers
                               to a state, because products of Jacobians cost its cube; else
                               sequential

With a guess it is newton: a guess says that the solution is near.
"""

from torch import Tensor

from ropewalk.blocks.recurrent.solvers.methods import Method, Newton, Sequential
from ropewalk.blocks.recurrent.solvers.system import System

SHORTEST = 32
WIDEST = 64


def chosen(system: System, guess: Tensor | None) -> Method:
    """The method for a cell without a kernel, or with a guess."""
    if guess is not None:
        return Newton()
    if system.drive.device.type == "cpu" or system.layout.time < SHORTEST:
        return Sequential()
    wide = system.cell.structure == "dense" and system.cell.state_size > WIDEST
    return Sequential() if wide else Newton()
