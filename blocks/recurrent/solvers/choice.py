"""What method="auto" takes.

Built-in diagonal cells are left to the fused scan, which chooses between Newton and steps in turn
by its own measurements. For others it is newton or sequential, by how long an iteration over all of
time takes against that many steps in turn, each of which costs its launches whatever its size:

              newton from SHORTEST steps on, while
    on a CPU  batch × state³ ≤ CPU_DENSE for dense cells, batch × state ≤ CPU_DIAGONAL for others
    on a GPU  state ≤ GPU_DENSE for dense cells, always for others

Measured on one CPU thread, GRU of 4, 16 and 64 states, batch 1, 4096 steps: newton 7, 20 and 1150
ms, in turn 670, 700 and 710 ms; a block2 cell of 16 channels 24 against 630 ms; at batch 8 87
against 670, 890 against 990, 390 against 870 ms. The GPU's limit is where a product of Jacobians
fills it.

If newton does not converge over all of time, a CPU takes the other steps in turn at once, and a GPU
smaller windows; as the choice was not the user's, no warning is given. With a guess it is newton: a
guess says that the solution is near.
"""

from torch import Tensor

from ropewalk.blocks.recurrent.solvers.methods import Method, Newton, Sequential
from ropewalk.blocks.recurrent.solvers.system import System

SHORTEST = 32
CPU_DENSE, CPU_DIAGONAL = 2**14, 2**8
GPU_DENSE = 64


def chosen(system: System, guess: Tensor | None) -> Method:
    """The method for a cell without a kernel, or with a guess."""
    size, dense = system.cell.state_size, system.cell.structure == "dense"
    if guess is not None:
        return Newton()
    if system.layout.time < SHORTEST:
        return Sequential()
    if system.drive.device.type == "cpu":
        work, limit = (size**3, CPU_DENSE) if dense else (size, CPU_DIAGONAL)
        fast = system.layout.batch * work <= limit
    else:
        fast = not dense or size <= GPU_DENSE
    return Newton() if fast else Sequential()
