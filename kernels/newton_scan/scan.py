"""`newton_scan`: all states of a built-in nonlinear cell, exactly."""

from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.autocast import widen_inputs
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.newton_scan import validation
from ropewalk.kernels.newton_scan.backend import BACKENDS, Backend
from ropewalk.kernels.newton_scan.composite import composite_scan
from ropewalk.kernels.newton_scan.eager import eager_scan
from ropewalk.kernels.newton_scan.op import newton_scan_op
from ropewalk.kernels.newton_scan.problem import Algorithm, CellName, Options, Problem, Scanned
from ropewalk.kernels.packing import check_numbers
from ropewalk.kernels.plain import check_transformable, is_plain, is_transformed


def newton_scan(
    inputs: Float[Tensor, "batch time gates channels"],
    weights: Float[Tensor, "rows channels"],
    initial_state: Float[Tensor, "sequences *parts channels"] | None = None,
    *,
    cell: CellName,
    algorithm: Algorithm = "auto",
    window: int | None = None,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    cu_seqlens: Int[Tensor, " sequences+1"] | None = None,
    backend: Backend = "auto",
) -> Scanned:
    """All states h_t = f(h_(t−1), x_t) of a cell that is elementwise along channels.

        tanh  x         w                        h' = tanh(x + w h)
        gru   r, z, n   w_r, w_z, w_n, b_n       r = σ(x_r + w_r h), z = σ(x_z + w_z h)
                                                 n = tanh(x_n + r (w_n h + b_n)), h' = n + z (h − n)
        lstm  f, z, o   a_f, a_z, a_o, c_f, c_o  f = σ(x_f + a_f h + c_f c), z = tanh(x_z + a_z h)
                                                 c' = z + f (c − z)
                                                 o = σ(x_o + a_o h + c_o c'), h' = o tanh(c')

    in the order of their gates and of their rows of weights. The states are those that steps in
    turn would give: by Newton's method inside windows of time, from whose last state the next goes
    on, or in turn indeed, whichever is faster. As many iterations as a window has steps always end
    exact, whatever the weights are; usually 3 to 7 do. The gradient is that of the solution, of
    inputs, weights and initial states, once and in reverse; it keeps what went in and the states.
    Under `torch.func` and in forward differentiation steps are taken in turn in ordinary torch.
    Under `torch.autocast` half precision of weights and initial states is taken as float32.

    Args:
        inputs: all that a step gets, usually a projection of what comes in; float16, bfloat16,
            float32 or float64, of any strides.
        weights: of the recurrence, in the dtype of the inputs or, with half precision, in float32.
        initial_state: the states before the first steps, of the LSTM [c, h]; None is zeros.
        cell: "tanh", "gru" or "lstm".
        algorithm: "newton", "sequential", or "auto" for the faster one. The three options that
            follow are of Newton's method.
        window: steps that are solved at once, at most: Triton's kernels cut what registers do not
            hold. None leaves it to the implementation.
        tolerance: of a step's residual, absolute; None is 1e-6, for float64 1e-13. The iteration
            that meets it still corrects what it has found.
        max_iterations: within a window; None is as many as it has steps. Fewer may end before the
            states are exact: `residual` tells.
        cu_seqlens: where packed sequences begin, and the end of the last: they lie one after
            another along time in a batch of 1, and the state starts anew at each. May be empty.
        backend: "auto", "reference", "numba" or "triton"; see
            `ropewalk.kernels.newton_scan.backend`.

    Returns:
        The states, and what each chain took and left: `Scanned`.

    Raises:
        ValueError: sizes, dtypes, devices or options that do not fit; an impossible backend.
        TypeError: an argument of the wrong kind.

    Source: DEER, arXiv 2309.12252 §3; the cells are those of ParaRNN, arXiv 2510.21450 §3;
    kexue.fm/archives/9783.

    Example:
        >>> inputs, weights = torch.randn(2, 100, 3, 8), torch.rand(4, 8)
        >>> states, iterations, residual = newton_scan(inputs, weights, cell="gru")
        >>> states.shape
        torch.Size([2, 100, 8])
    """
    if initial_state is None:
        (weights,) = widen_inputs(weights)
    else:
        weights, initial_state = widen_inputs(weights, initial_state)
    validation.check_cell(cell)
    validation.check_tensors(inputs, weights, initial_state, cell, cu_seqlens)
    validation.check_options(algorithm, window, tolerance, max_iterations)
    check_backend(backend, BACKENDS)
    cu = None if cu_seqlens is None else cu_seqlens.int()
    if is_transformed():
        check_transformable(backend)
        if cu is not None:
            check_numbers("cu_seqlens", cu, inputs.shape[1])
        return composite_scan(Problem(inputs, weights, initial_state, cell, cu))
    if is_plain(inputs, weights, initial_state, cu):
        return eager_scan(
            Problem(inputs, weights, initial_state, cell, cu),
            Options(algorithm, window, tolerance, max_iterations),
            backend,
        )
    return Scanned(
        *newton_scan_op(
            inputs, weights, initial_state, cu, cell, algorithm, window, tolerance,
            max_iterations, backend,
        )
    )  # fmt: skip
