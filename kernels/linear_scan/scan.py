"""`linear_scan`: all states of a linear recurrence at once."""

from jaxtyping import Inexact, Int
from torch import Tensor

from ropewalk.kernels.autocast import widen_inputs
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.linear_scan import validation
from ropewalk.kernels.linear_scan.backend import BACKENDS, Backend
from ropewalk.kernels.linear_scan.composite import composite_scan
from ropewalk.kernels.linear_scan.eager import eager_scan
from ropewalk.kernels.linear_scan.op import linear_scan_op
from ropewalk.kernels.linear_scan.problem import Problem
from ropewalk.kernels.packing import check_numbers
from ropewalk.kernels.plain import check_transformable, is_plain, is_transformed


def linear_scan(
    a: Inexact[Tensor, "#batch #time *coefficients channels"],
    b: Inexact[Tensor, "batch time *block channels"],
    initial_state: Inexact[Tensor, "sequences *block channels"] | None = None,
    *,
    reverse: bool = False,
    cu_seqlens: Int[Tensor, " sequences+1"] | None = None,
    backend: Backend = "auto",
) -> Inexact[Tensor, "batch time *block channels"]:
    """All states of the linear recurrence x_t = a_t x_(t−1) + b_t.

    The dimensions tell what a is:

        diagonal   a (batch, time, channels)             b (batch, time, channels)
        2×2 blocks a (batch, time, 2, 2, channels)       b (batch, time, 2, channels)
        dense      a (batch, time, channels, channels)   b (batch, time, channels)

    Blocks are laid out so that channels stay neighbours: a[…, i, j, :] is row i, column j of every
    channel's matrix. Differentiable, once and in reverse, in a, b and the initial state, and
    through the last state, which is `x[:, -1]`; the backward is one scan the other way, and keeps
    a and the states. Under `torch.func` (vmap, grad, jvp, …) and in forward differentiation it is
    computed in ordinary torch, as often differentiable as wanted.

    States and sums are float32 for half precision, which is rounded once, at the end. Coefficients
    above one grow as they must: a state that leaves the range of its dtype is infinite. Under
    `torch.autocast` half precision is taken as float32, as torch does for cumulative sums.

    Args:
        a: coefficients, of any strides; 1 in the place of batch or time is broadcast.
        b: what is added, in the dtype of a: float16, bfloat16, float32, float64; or complex64,
            complex128, where backwards conjugate as torch's do.
        initial_state: x_0 of each sequence; None is zeros. If reversed, what follows the last step.
        reverse: x_t = a_t x_(t+1) + b_t.
        cu_seqlens: where packed sequences begin, and the end of the last: they lie one after
            another along time in a batch of 1, and the state starts anew at each. May be empty.
        backend: "auto", "reference", "numba" or "triton"; see
            `ropewalk.kernels.linear_scan.backend`.

    Returns:
        The states, contiguous, of the shape of b.

    Raises:
        ValueError: sizes, dtypes or devices that do not fit; an impossible backend.
        TypeError: an argument of the wrong kind.

    Source: Blelloch, Prefix sums and their applications (1990); as the step of Newton's method for
    nonlinear recurrences in arXiv 2309.12252 §3 and kexue.fm/archives/9783.

    Example:
        >>> decay = torch.rand(2, 100, 8)
        >>> linear_scan(decay, torch.randn(2, 100, 8), torch.zeros(2, 8)).shape
        torch.Size([2, 100, 8])
    """
    given = (a, b) if initial_state is None else (a, b, initial_state)
    a, b, *rest = widen_inputs(*given)
    initial = rest[0] if rest else None
    validation.check_tensors(a, b, initial, cu_seqlens)
    validation.check_options(reverse)
    check_backend(backend, BACKENDS)
    a = a.expand(*b.shape[:2], *a.shape[2:])
    if b.is_complex():  # what is only marked as conjugated is read as it lies by compiled loops
        a, b = a.resolve_conj(), b.resolve_conj()
        initial = None if initial is None else initial.resolve_conj()
    cu = None if cu_seqlens is None else cu_seqlens.int()
    if is_transformed():
        check_transformable(backend)
        if cu is not None:
            check_numbers("cu_seqlens", cu, b.shape[1])
        return composite_scan(Problem(a, b, initial, reverse, cu))
    if is_plain(a, b, initial, cu):
        return eager_scan(Problem(a, b, initial, reverse, cu), backend)
    return linear_scan_op(a, b, initial, cu, reverse, backend)
