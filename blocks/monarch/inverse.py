"""What a Monarch matrix is closed under: its transpose, its inverse, and its determinant.

    M:    h_k = R_k x_k,   y_l = L_l h_l               h[k, (l r)] and h[l, (k r)] are the same
    Mᵀ:   right' = Lᵀ (l, k·r, s),   left' = Rᵀ (k, p, l·r)
    M⁻¹:  right' = L⁻¹,   left' = R⁻¹;   log|det M| = Σ_k log|det R_k| + Σ_l log|det L_l|

Both are Monarch in the mirrored layout, k and l changing places. An inverse exists where the blocks
are square, p = l·r and s = k·r; at rank 1 this means that the number of blocks on one side is the
block's size on the other. A solve is two batched solves of blocks, O(n^1.5) a vector after an
O(n²) factorisation, against O(n²) after O(n³) for a dense matrix. M Mᵀ is no Monarch matrix.

Source: Dao et al. 2022, arXiv 2204.00595 §3.1, for the form; the rest follows from it.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Inexact
from torch import Tensor

from ropewalk.kernels.monarch.validation import check_alike, check_factors

# torch documents this name, but its module has no list of what it exports.
_LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]

Right = Inexact[Tensor, "input_blocks width_in input_size"]
Left = Inexact[Tensor, "output_blocks output_size width_out"]


def monarch_transpose(right: Right, left: Left) -> tuple[Tensor, Tensor]:
    """The factors of Mᵀ: views of the ones that are given.

    Args:
        right: R, (k, l·r, p).
        left: L, (l, s, k·r).

    Returns:
        right' (l, k·r, s) and left' (k, p, l·r).

    Raises:
        ValueError: sizes, dtypes or devices that do not belong together.
        TypeError: not tensors.
    """
    _check(right, left)
    return left.mT, right.mT


def monarch_inverse(right: Right, left: Left) -> tuple[Tensor, Tensor]:
    """The factors of M⁻¹. To apply it once, `monarch_solve` is cheaper and more exact.

    Args:
        right: R, (k, l·r, p) with l·r = p.
        left: L, (l, s, k·r) with k·r = s.

    Returns:
        right' (l, k·r, s) and left' (k, p, l·r), in the dtype of the factors. Half precision is
        inverted in float32 and rounded back.

    Raises:
        ValueError: blocks that are not square, or factors that do not belong together.
        TypeError: not tensors.
        torch.linalg.LinAlgError: a singular block; says which.
    """
    _check(right, left)
    _check_square(right, left)
    inverted = []
    for name, factor in (("left", left), ("right", right)):
        exact = factor.to(_exact(factor.dtype))
        inverted.append(_regular(name, exact, _inverted).to(factor.dtype))
    return inverted[0], inverted[1]


def monarch_solve(
    right: Right, left: Left, y: Inexact[Tensor, "*batch outputs"]
) -> Inexact[Tensor, "*batch inputs"]:
    """The x with M x = y, by an LU decomposition of each block. Differentiable in all three.

    Args:
        right: R, (k, l·r, p) with l·r = p.
        left: L, (l, s, k·r) with k·r = s.
        y: (*batch, l·s), in the dtype of the factors.

    Returns:
        (*batch, k·p), in the dtype of `y`. Half precision is solved in float32 and rounded back.

    Raises:
        ValueError: blocks that are not square; `y` of another size, dtype or device.
        TypeError: not tensors.
        torch.linalg.LinAlgError: a singular block; says which.
    """
    _check(right, left, y)
    _check_square(right, left)
    blocks, size = left.shape[:2]
    if y.ndim < 1 or y.shape[-1] != blocks * size:
        raise ValueError(
            f"y: expected (..., {blocks * size}), which is blocks × features of left "
            f"{tuple(left.shape)}, got {tuple(y.shape)}"
        )
    exact = _exact(y.dtype)
    # The tokens are the columns of each block's right-hand side.
    columns = rearrange(y.reshape(-1, blocks * size).to(exact), "t (l s) -> l s t", l=blocks)
    hidden = _solve("left", left.to(exact), columns)
    hidden = rearrange(hidden, "l (k r) t -> k (l r) t", k=right.shape[0])
    x = _solve("right", right.to(exact), hidden)
    x = rearrange(x, "k p t -> t (k p)").to(y.dtype)
    return x.reshape(*y.shape[:-1], x.shape[-1])


def log_abs_det(right: Right, left: Left) -> Inexact[Tensor, ""]:
    """log|det M|: the blocks' sum, −∞ if one is singular. Differentiable where it is finite.

    Args:
        right: R, (k, l·r, p) with l·r = p.
        left: L, (l, s, k·r) with k·r = s.

    Returns:
        A real number in float64 for float64 and complex128 factors, otherwise in float32.

    Raises:
        ValueError: blocks that are not square, or factors that do not belong together.
        TypeError: not tensors.
    """
    _check(right, left)
    _check_square(right, left)
    exact = _exact(right.dtype)
    logarithms = [torch.linalg.slogdet(factor.to(exact)).logabsdet for factor in (right, left)]
    return logarithms[0].sum() + logarithms[1].sum()


def _inverted(blocks: Tensor) -> Tensor:
    return torch.linalg.inv_ex(blocks, check_errors=True).inverse


def _solve(name: str, blocks: Tensor, columns: Tensor) -> Tensor:
    def solved(blocks: Tensor) -> Tensor:
        return torch.linalg.solve_ex(blocks, columns, check_errors=True).result

    return _regular(name, blocks, solved)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What LAPACK decomposes: at least single precision."""
    return torch.promote_types(dtype, torch.float32)


def _check(right: Tensor, left: Tensor, y: Tensor | None = None) -> None:
    check_alike(right=right, left=left, **({} if y is None else {"y": y}))
    check_factors(right, left)


def _check_square(right: Tensor, left: Tensor) -> None:
    (k, rows, p), (blocks, s, columns) = right.shape, left.shape
    if rows == p and columns == s:
        return
    rank = columns // k
    mend = (
        f"take blocks of p = {blocks * rank} input and s = {k * rank} output features, or "
        "torch.linalg.lstsq on monarch_to_dense(right, left)"
    )
    raise ValueError(
        f"right and left: expected square blocks, l·r = p and k·r = s, got k = {k}, l = {blocks}, "
        f"r = {rank} with p = {p} and s = {s}: {rows} × {p} and {s} × {columns}, which have no "
        f"inverse; {mend}"
    )


def _regular(name: str, blocks: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the blocks that fails for singular ones, and says which these are then."""
    if torch.compiler.is_compiling():
        return function(blocks)
    try:
        return function(blocks)
    except _LinAlgError as error:
        raise _LinAlgError(
            f"{name}: expected regular blocks, got singular ones{_singular(blocks)}; a block that "
            "starts at zero, as an adapter's does, has no inverse"
        ) from error


def _singular(blocks: Tensor) -> str:
    """Which blocks they are, looked up only now, because it needs values: vmap hides them."""
    try:
        info = torch.linalg.inv_ex(blocks.detach()).info
        return f": {_listed(info.nonzero().flatten().tolist())} (of 0…{info.numel() - 1})"
    except RuntimeError:
        return " in one of the matrices that vmap maps over"


def _listed(numbers: list[int]) -> str:
    shown = f"block{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:8]))}"
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
