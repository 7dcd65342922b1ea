"""The Monarch matrix whose *output* is nearest to a dense one's, for inputs of a known moment.

    min E‖(W − M) x‖²  =  min tr((W − M) C (W − M)ᵀ),      C = E[x xᵀ]

Output blocks do not share a number of the factors; within one, the slices M[l, k] meet in C, so
there is no closed form. What is done:

1. One slice, the others fixed. With D = W − M without this slice, the best matrix of any rank is
   G = W[l, k] + D C[:, k] C[k, k]⁻¹; of rank r it is G cut in the norm of C[k, k]: L = the first
   left singular vectors of G C[k, k]^½, R = Lᵀ G. (LᵀG, and not the whitened factor turned back,
   which divides by what C does not have: a weight that is Monarch already stays what it is.)
2. All of the left factor of an output block, the right one fixed: least squares.

Both are exact minima, so that the error never grows. It begins at the better of two: the plain
projection, and every slice by itself in the norm of C[k, k]. Where C is the identity the plain
projection is already the minimum, and stays.

`ridge` times the mean diagonal of C is added to the diagonal. That is no cure for a C that was
estimated from few rows: `moments` says how `monarchize` shrinks it.

Source: weighted low-rank approximation, Srebro and Jaakkola 2003; with the moment of activations in
the place of weights, Wang et al., arXiv 2403.07378 (low rank, one slice).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.blocks.checks import require_integer, require_number
from ropewalk.blocks.monarch.projection import Decomposition, check_weight, decompose, slices
from ropewalk.blocks.monarch.shape import Blocks, MonarchShape
from ropewalk.kernels.monarch import monarch_to_dense

SWEEPS = 8
RIDGE = 0.01
# Sweeps end where one gains less than this share of the squared error.
_GAIN = 1e-3


class WeightedProjection(NamedTuple):
    """The factors found, and how near they are in either sense.

    Attributes:
        right: R, in the dtype of the weight.
        left: L, in the dtype of the weight.
        relative_error: ‖W − LR‖ / ‖W‖ of these factors, which the plain projection makes smaller.
        output_error: (E‖(W − LR) x‖² / E‖W x‖²)^½ of these factors.
        shape: the sizes.
    """

    right: Float[Tensor, "input_blocks output_blocks*rank input_size"]
    left: Float[Tensor, "output_blocks output_size input_blocks*rank"]
    relative_error: float
    output_error: float
    shape: MonarchShape


def monarch_project_weighted(
    weight: Float[Tensor, "out_features in_features"],
    second_moment: Float[Tensor, "in_features in_features"],
    *,
    nblocks: Blocks = 4,
    rank: int | None = None,
    ridge: float = RIDGE,
    sweeps: int = SWEEPS,
) -> WeightedProjection:
    """The Monarch matrix whose output is nearest to that of `weight`.

    Computes in float64. A sweep costs O(out · in²) and three matrices of the weight's size.

    Args:
        weight: (out, in), as `nn.Linear` has it, floating-point.
        second_moment: C, the mean of x xᵀ over the inputs x that matter; symmetric. With a bias
            that is going to be corrected, the covariance. Of fewer rows than about four for each
            feature it must be shrunk towards its diagonal, or the fit is to their chance.
        nblocks: (input blocks, output blocks), or a number for both.
        rank: of a slice; see `MonarchShape.of` for None.
        ridge: what is added to the diagonal of C, in units of its mean.
        sweeps: rounds over all slices, at most.

    Returns:
        `WeightedProjection`; its `output_error` is never above that of the plain projection, but
        for what the ridge weighs.

    Raises:
        ValueError: as `monarch_project`; a moment that does not fit the weight or is none (not
            finite, not symmetric, negative on its diagonal); a negative ridge.
        TypeError: an argument of the wrong kind.
    """
    check_weight(weight)
    _check_moment(second_moment, weight.shape[1])
    require_number("monarch_project_weighted", "a number ≥ 0", ridge=ridge)
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge: expected a finite number ≥ 0, got {ridge}")
    require_integer("monarch_project_weighted", 0, sweeps=sweeps)
    shape = MonarchShape.of(weight.shape[1], weight.shape[0], nblocks=nblocks, rank=rank)
    return fit(weight, second_moment, shape, ridge=ridge, sweeps=sweeps)


@torch.no_grad()
def fit(
    weight: Tensor,
    second_moment: Tensor,
    shape: MonarchShape,
    *,
    ridge: float = RIDGE,
    sweeps: int = SWEEPS,
    plain: Decomposition | None = None,
    measured: Tensor | None = None,
) -> WeightedProjection:
    """`monarch_project_weighted` of arguments that have been checked.

    Args:
        weight: (out, in).
        second_moment: C.
        shape: the sizes.
        ridge: as there.
        sweeps: as there.
        plain: the decomposition of the weight's slices, if it is known already.
        measured: the moment by which the output error is told, if not by C.
    """
    plain = decompose(weight, shape) if plain is None else plain
    wide = in_float64(weight)
    moment = in_float64(second_moment).to(wide.device)
    problem = _Problem(wide, _with_ridge(moment, ridge), shape)
    u, sigma, vh = (x[..., : shape.rank].to(wide) for x in (plain.u, plain.sigma, plain.vh.mT))
    problem.start(u, (vh * sigma.unsqueeze(-2)).mT)
    for _ in range(sweeps):
        before = problem.error
        problem.sweep()
        if before - problem.error <= _GAIN * before:
            break
    right, left = _balanced(problem.right, problem.left)
    right, left = (factor.to(weight.device, weight.dtype) for factor in (right, left))
    rest = difference(weight, right, left)  # as they are stored
    told = moment if measured is None else in_float64(measured).to(wide.device)
    return WeightedProjection(
        right, left, weight_error(wide, rest), relative_output_error(wide, rest, told), shape
    )


def difference(weight: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """What factors leave of a weight, in float64."""
    wide = in_float64(weight)
    matrix = monarch_to_dense(in_float64(right), in_float64(left))
    return wide - matrix[: wide.shape[0], : wide.shape[1]]


def weight_error(weight: Tensor, rest: Tensor) -> float:
    """‖D‖ / ‖W‖ of a difference D to a weight W; 0 where the weight is."""
    return _ratio(rest.square().sum(), weight.square().sum())


def in_float64(tensor: Tensor) -> Tensor:
    """On its device, or on the CPU where the device has no float64."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)


def relative_output_error(weight: Tensor, difference: Tensor, second_moment: Tensor) -> float:
    """(E‖D x‖² / E‖W x‖²)^½ of a difference D to a weight W; 0 where the output is."""
    return _ratio(_energy(difference, second_moment), _energy(weight, second_moment))


def _energy(matrix: Tensor, second_moment: Tensor) -> Tensor:
    return ((matrix @ second_moment) * matrix).sum().clamp_min(0)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float((part / whole).sqrt()) if whole > 0 else 0.0


def _with_ridge(moment: Tensor, ridge: float) -> Tensor:
    mean = moment.diagonal().mean()
    if mean == 0:  # inputs that are always zero say nothing about which error matters
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment + ridge * mean * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


class _Problem:
    """The slices that have been found so far; what is left of the weight is kept up to date.

    Attributes:
        right: (l, k, r, p).
        left: (l, k, s, r).
        residual: W − M, (l·s, k·p).
        error: tr((W − M) C (W − M)ᵀ).
    """

    def __init__(self, weight: Tensor, moment: Tensor, shape: MonarchShape) -> None:
        self.shape = shape
        over = shape.padded_in - shape.in_features
        self.weight = functional.pad(weight, (0, over, 0, shape.padded_out - shape.out_features))
        self.moment = functional.pad(moment, (0, over, 0, over))
        self.target = slices(weight, shape)  # (l, k, s, p)
        blocks = self.moment.unflatten(0, (shape.input_blocks, -1)).unflatten(
            2, (-1, shape.input_size)
        )
        values, vectors = torch.linalg.eigh(
            torch.stack([blocks[k, :, k] for k in range(shape.input_blocks)])
        )
        # Directions that never occur, the filled-up features among them, weigh next to nothing.
        values = values.clamp_min((values.amax(-1, keepdim=True) * 1e-12).clamp_min(1e-300))
        scaled = vectors * values.sqrt().unsqueeze(-2)
        self.root = scaled @ vectors.mT
        self.inverse_root = (vectors / values.sqrt().unsqueeze(-2)) @ vectors.mT
        self.inverse = (vectors / values.unsqueeze(-2)) @ vectors.mT

    def start(self, left: Tensor, right: Tensor) -> None:
        """Begins with the plain projection, or with the slices one by one if they are nearer."""
        self._set(left, right)
        plain = (self.left, self.right, self.residual, self.error)
        u = _leading(self.target @ self.root, self.shape.rank)
        self._set(u, u.mT @ self.target)
        if self.error > plain[-1]:
            self.left, self.right, self.residual, self.error = plain

    def _set(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left.clone(), right.clone()
        self._measure()

    def matrix(self) -> Tensor:
        """What the factors make, (l·s, k·p)."""
        return (self.left @ self.right).transpose(1, 2).flatten(2).flatten(0, 1)

    def _measure(self) -> None:
        self.residual = self.weight - self.matrix()
        self.error = float(_energy(self.residual, self.moment))

    def sweep(self) -> None:
        """Every slice once, then the left factor."""
        shape = self.shape
        best = (self.left.clone(), self.right.clone(), self.residual.clone(), self.error)
        for k in range(shape.input_blocks):
            self._improve_slices(k)
        if shape.input_blocks > 1:
            self._solve_left()
        self._measure()
        if not self.error < best[-1]:  # the last digits of a minimum
            self.left, self.right, self.residual, self.error = best

    def _improve_slices(self, k: int) -> None:
        """Step 1 for the slices of input block k, of all output blocks at once."""
        shape = self.shape
        columns = slice(k * shape.input_size, (k + 1) * shape.input_size)
        pull = (self.residual @ self.moment[:, columns]).unflatten(0, (shape.output_blocks, -1))
        now = self.left[:, k] @ self.right[:, k]
        u = _leading(now @ self.root[k] + pull @ self.inverse_root[k], shape.rank)
        self.left[:, k] = u
        self.right[:, k] = u.mT @ (now + pull @ self.inverse[k])
        found = self.target[:, k] - u @ self.right[:, k]
        self.residual[:, columns] = found.flatten(0, 1)

    def _solve_left(self) -> None:
        """Step 2: left = W C Rᵀ (R C Rᵀ)⁻¹ for each output block."""
        shape = self.shape
        k, r = shape.input_blocks, shape.rank
        columns = self.moment.unflatten(1, (k, shape.input_size))
        images = torch.einsum("ikp,lkrp->likr", columns, self.right).flatten(2)  # C Rᵀ
        gram = torch.einsum(
            "lkrp,lkpc->lkrc", self.right, images.unflatten(1, (k, shape.input_size))
        ).flatten(1, 2)
        rows = self.weight.unflatten(0, (shape.output_blocks, shape.output_size))
        left = rows @ images @ torch.linalg.pinv(gram, hermitian=True)
        self.left = left.unflatten(2, (k, r)).transpose(1, 2).contiguous()


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal, spanning the first `rank` left singular vectors; by the smaller Gram matrix."""
    rows, columns = matrix.shape[-2:]
    if rows <= columns:
        return torch.linalg.eigh(matrix @ matrix.mT).eigenvectors[..., -rank:]
    right = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors[..., -rank:]
    return torch.linalg.qr(matrix @ right).Q


def _balanced(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Right (k, l·r, p) and left (l, s, k·r) of the same slices, √σ in either."""
    q, rest = torch.linalg.qr(left)
    u, sigma, vh = torch.linalg.svd(rest @ right, full_matrices=False)
    return Decomposition(q @ u, sigma, vh).factors(right.shape[-2])


def _check_moment(moment: Tensor, features: int) -> None:
    if not isinstance(moment, Tensor):
        raise TypeError(f"second_moment: expected a tensor, got {type(moment).__name__}")
    if tuple(moment.shape) != (features, features) or not moment.is_floating_point():
        raise ValueError(
            f"second_moment: expected a floating-point ({features}, {features}) for a weight of "
            f"{features} inputs, got {moment.dtype} {tuple(moment.shape)}"
        )
    if not bool(moment.isfinite().all()):
        raise ValueError("second_moment: expected finite numbers, got NaN or infinite ones")
    scale = moment.diagonal().abs().amax()
    if bool((moment.diagonal() < 0).any()) or bool(
        (moment - moment.mT).abs().amax() > 1e-3 * scale
    ):
        raise ValueError(
            "second_moment: expected a symmetric matrix with a diagonal ≥ 0, the mean of x xᵀ, got "
            "another; pass x.mT @ x / len(x) of rows x"
        )
