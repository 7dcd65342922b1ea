"""The one array that inner loops write to: rows of channels.

A loop becomes vector instructions only if no row that it writes can be one that it reads. Of many
arrays that is never proven; of rows of one array of a known size it is.
"""

from ropewalk.kernels.compiled.compiler import inlined

MOST_CHANNELS = 256
ROW = MOST_CHANNELS + 16
"""Length of a row. Rows at a multiple of 4 KiB would wait for each other's stores."""
SUMMED_STEPS = 32
"""Steps whose weights' gradients are summed in the dtype of the calculation."""


@inlined
def load(scratch, row, memory, at, size):
    """Copies neighbours in memory to a row."""
    given = memory[at : at + size]
    for c in range(size):
        scratch[row, c] = given[c]


@inlined
def store(scratch, row, memory, at, size):
    """Copies a row to neighbours in memory."""
    taken = memory[at : at + size]
    for c in range(size):
        taken[c] = scratch[row, c]


@inlined
def clear(scratch, row, rows, size):
    """Sets rows to zero."""
    for i in range(row, row + rows):
        for c in range(size):
            scratch[i, c] = 0


@inlined
def flush(scratch, row, rows, sums, channels, low, size):
    """Adds rows to the sums over all steps, and sets them to zero."""
    for i in range(rows):
        total = sums[i * channels + low : i * channels + low + size]
        for c in range(size):
            total[c] += scratch[row + i, c]
    clear(scratch, row, rows, size)


@inlined
def greater(known, found):
    """The greater of two residuals; once there is a NaN it stays."""
    return found if found > known or found != found else known


@inlined
def finite(value, otherwise):
    """A value, or another one in place of an infinity or a NaN."""
    return value if value - value == 0 else otherwise


@inlined
def converged(scratch, row, size, tolerance):
    """Whether no residual of a row is above the tolerance, nor a NaN."""
    met = True
    for c in range(size):
        met &= scratch[row, c] <= tolerance
    return met


@inlined
def report(scratch, row, size, iteration, at, iterations, residual):
    """Keeps the most iterations of all windows, and the greatest residual."""
    for c in range(size):
        iterations[at + c] = max(iterations[at + c], iteration)
        residual[at + c] = greater(residual[at + c], scratch[row, c])
