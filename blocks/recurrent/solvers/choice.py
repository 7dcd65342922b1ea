"""What method="auto" takes.

Built-in diagonal cells are left to the fused scan, which chooses between Newton and steps in turn
by its own measurements. For others it is newton or sequential, by how long an iteration over all of
time takes against that many steps in turn, each of which costs its launches whatever its size:

              newton from SHORTEST steps on, while
    on a CPU  batch × state³ ≤ CPU_DENSE for dense cells, batch × state ≤ CPU_DIAGONAL for others
    on a GPU  state ≤ GPU_DENSE for dense cells, always for others

Measured on one CPU thread, newton against steps in turn, in ms, at 4096 steps: GRU of 4 and 20
states, batch 1, 12 against 203 and 124 against 196; of 4, 8 and 16 states, batch 8, 91 against 146,
217 against 169 and 885 against 182; a block2 function of 16 channels 21 against 101, at batch 8 471
against 247. At 256 steps, batch 1, a GRU of 4 states 2.4 against 10.9, the function 5.4 against
11.0; at 64 steps 2.0 against 2.2 and 9.1 against 1.7. Small cells cost their launches, on a GPU,
too. The GPU's limit is where a product of Jacobians fills it.

If newton does not converge over all of time, a CPU takes the other steps in turn at once, and a GPU
smaller windows; as the choice was not the user's, no warning is given. With a guess it is newton: a
guess says that the solution is near.
"""

from torch import Tensor

from ropewalk.blocks.recurrent.solvers.methods import Method, Newton, Sequential
from ropewalk.blocks.recurrent.solvers.system import System

SHORTEST = 256
CPU_DENSE, CPU_DIAGONAL = 2**13, 2**6
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
