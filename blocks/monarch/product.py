"""Products of order p: a matrix of p block-diagonal factors, each of which acts on one axis.

Split the input into axes (a_1, …, a_p). Factor j contracts the last input axis that is left and
puts a new output axis behind those that are there:

    (b_1 … b_(j−1), a_1 … a_(q−1), a_q)  →  (b_1 … b_(j−1), b_j, a_1 … a_(q−1)),   q = p − j + 1

with another matrix for each value of the other axes. Factor j is therefore (blocks, m_j, n_q), its
blocks being counted over (b_1 … b_(j−1), a_1 … a_(q−1)), last axis fastest. With p = 1 this is a
dense matrix, with p = 2 a Monarch matrix of slice rank 1 (right = factors[0], left = factors[1]);
with n features and p equal axes it has p·n^(1 + 1/p) parameters and twice that of operations a row,
down to the 2·n·log₂ n of a butterfly. It costs p passes over the activations where two suffice, so
p > 2 pays where parameters count, or in the fast transforms of `constructions`.

If every block is an identity, the product reverses the axes: output (b_1, …, b_p) is input
(a_1, …, a_p) = (b_p, …, b_1), which for equal axes is the reversal of digits that Fourier
transforms know.

Source: Dao et al. 2022, arXiv 2204.00595 (p = 2); Fu et al. 2023, arXiv 2310.12109 §3 (order p).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer
from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.monarch.validation import COMPLEX, REAL

Factor = Inexact[Tensor, "blocks output_axis input_axis"]


def monarch_product(
    x: Inexact[Tensor, "*batch inputs"], factors: Sequence[Factor]
) -> Inexact[Tensor, "*batch outputs"]:
    """Rows times a product of any order, by one batched product a factor.

    Any device; differentiable as often as wanted. For two factors
    `ropewalk.kernels.monarch.monarch_matmul` computes the same with fewer passes over memory.

    Args:
        x: floating-point or complex, of any strides.
        factors: p tensors in the dtype of x; the j-th is (blocks, m_j, n_(p − j + 1)). Their shapes
            say the axes; see `product_sizes`. Under `torch.autocast` products are in its dtype.

    Raises:
        ValueError: factors that do not fit each other, or x.
        TypeError: not tensors.

    Example:
        >>> x = torch.randn(8, 2 * 3 * 5)
        >>> factors = [torch.randn(2 * 3, 4, 5), torch.randn(4 * 2, 4, 3), torch.randn(4 * 4, 4, 2)]
        >>> monarch_product(x, factors).shape
        torch.Size([8, 64])
    """
    inputs, outputs = product_sizes(factors)
    if isinstance(x, Tensor) and not x.is_complex():
        x, *factors = cast_inputs(x, *factors)
    _check_rows(x, factors[0], math.prod(inputs))
    rows = x.reshape(-1, math.prod(inputs))
    # (blocks over the other axes, tokens, the axis to be contracted), which at first is a view.
    state = rows.unflatten(1, (factors[0].shape[0], inputs[-1])).transpose(0, 1)
    for index, factor in enumerate(factors):
        state = torch.bmm(state, factor.mT)
        following = inputs[: len(inputs) - index - 1]
        if following:
            # Of (done, rest, next axis | tokens, made) to (done, made, rest | tokens, next axis).
            done, rest = math.prod(outputs[:index]), math.prod(following[:-1])
            state = state.unflatten(0, (done, rest, following[-1]))
            state = state.permute(0, 4, 1, 3, 2).flatten(0, 2)
    return state.transpose(0, 1).reshape(*x.shape[:-1], math.prod(outputs))


def product_to_dense(factors: Sequence[Factor]) -> Inexact[Tensor, "outputs inputs"]:
    """The matrix that `monarch_product` multiplies by; differentiable.

    Raises:
        ValueError: factors that do not fit each other.
        TypeError: not tensors.
    """
    inputs, _ = product_sizes(factors)
    first = factors[0]
    units = torch.eye(math.prod(inputs), dtype=first.dtype, device=first.device)
    return monarch_product(units, factors).mT.contiguous()


def product_sizes(factors: Sequence[Factor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input axes (n_1, …, n_p) and output axes (m_1, …, m_p) of factors.

    Raises:
        ValueError: none, or factors that do not fit each other.
        TypeError: not tensors.
    """
    if isinstance(factors, Tensor) or not isinstance(factors, Sequence):
        raise TypeError(f"factors: expected a list of tensors, got {type(factors).__name__}")
    if not factors:
        raise ValueError("factors: expected at least one, got none")
    for index, factor in enumerate(factors):
        if not isinstance(factor, Tensor):
            raise TypeError(f"factors[{index}]: expected a tensor, got {type(factor).__name__}")
        if factor.dtype not in REAL + COMPLEX:
            raise ValueError(
                f"factors[{index}]: expected a floating-point or complex dtype, got "
                f"{factor.dtype}; use .float()"
            )
        if factor.dtype != factors[0].dtype or factor.device != factors[0].device:
            raise ValueError(
                f"factors[{index}]: expected {factors[0].dtype} on {factors[0].device} as the "
                f"first one, got {factor.dtype} on {factor.device}; use .to(factors[0])"
            )
        if factor.ndim != 3 or 0 in factor.shape:
            raise ValueError(
                f"factors[{index}]: expected (blocks, output axis, input axis), none of them 0, "
                f"got {tuple(factor.shape)}"
            )
    inputs = tuple(factor.shape[2] for factor in reversed(factors))
    outputs = tuple(factor.shape[1] for factor in factors)
    for index, (factor, form) in enumerate(zip(factors, _shapes(inputs, outputs), strict=True)):
        if tuple(factor.shape) != form:
            raise ValueError(
                f"factors[{index}]: expected {form}, one block for each value of the other axes "
                f"(outputs {outputs[:index]} and inputs {inputs[: len(inputs) - index - 1]}), got "
                f"{tuple(factor.shape)}"
            )
    return inputs, outputs


def _shapes(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The factors' shapes."""
    order = len(inputs)
    return [
        (
            math.prod(outputs[:j]) * math.prod(inputs[: order - j - 1]),
            outputs[j],
            inputs[order - j - 1],
        )
        for j in range(order)
    ]


def _check_rows(x: Tensor, factor: Tensor, features: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(
            f"x: expected (..., {features}), the product of the factors' input axes, got "
            f"{tuple(x.shape)}"
        )
    if x.device != factor.device:
        raise ValueError(f"x: expected on {factor.device} as the factors are, got {x.device}")
    if x.dtype != factor.dtype:
        raise ValueError(
            f"x: expected {factor.dtype} as the factors are, got {x.dtype}; cast one of them, or "
            "run under torch.autocast"
        )


class MonarchProduct(nn.Module):
    """A linear layer of p block-diagonal factors, each acting on one axis of the features.

    At initialisation its output has the variance that `nn.Linear`'s has: each factor keeps that of
    its input, and the last makes a third of it.

    Example:
        >>> layer = MonarchProduct((8, 8, 8), (4, 8, 8))   # 512 features to 256
        >>> layer(torch.randn(2, 3, 512)).shape
        torch.Size([2, 3, 256])

    Attributes:
        factors: p parameters; the j-th is (blocks, m_j, n_(p − j + 1)).
        bias: (out_features,), or None.

    Args:
        sizes: the input axes (n_1, …, n_p), whose product is `in_features`.
        out_sizes: the output axes (m_1, …, m_p); by default the input axes in reversed order, for
            which every block is square.
        bias: whether there is one.
        device: of the parameters; "meta" for none yet: `to_empty` and `reset_parameters` later.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: no axes, sizes below 1, another number of output axes, a dtype that is not
            floating-point.
        TypeError: an argument of the wrong kind.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        sizes: Sequence[int],
        out_sizes: Sequence[int] | None = None,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sizes = _axes("sizes", sizes)
        self.out_sizes = self.sizes[::-1] if out_sizes is None else _axes("out_sizes", out_sizes)
        if len(self.out_sizes) != len(self.sizes):
            raise ValueError(
                f"out_sizes: expected {len(self.sizes)} axes as sizes {self.sizes} has, got "
                f"{self.out_sizes}; a missing axis may be 1"
            )
        if not isinstance(bias, bool):
            raise TypeError(
                f"bias: expected True or False, got {type(bias).__name__}; assign values to "
                ".bias.data afterwards"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating-point one, got {dtype}")
        self.in_features, self.out_features = math.prod(self.sizes), math.prod(self.out_sizes)
        self.factors = nn.ParameterList(
            torch.empty(form, device=device, dtype=dtype)
            for form in _shapes(self.sizes, self.out_sizes)
        )
        vector = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if vector is None else nn.Parameter(vector))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises every parameter, also after `to_empty`."""
        if self.factors[0].is_meta:
            return
        for index, factor in enumerate(self.factors):
            # Entries of variance 1 / n_j keep that of the input.
            last = index == len(self.factors) - 1
            bound = math.sqrt((1 if last else 3) / factor.shape[2])
            nn.init.uniform_(factor, -bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """The product, plus the bias.

        Raises:
            ValueError: x of another width, device or, without autocast, dtype.
            TypeError: not a tensor.
        """
        y = monarch_product(x, list(self.factors))
        # Under autocast the product is in its dtype; a wider bias must not widen the result.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The matrix itself, computed from the factors at each access; differentiable."""
        return product_to_dense(list(self.factors))

    def extra_repr(self) -> str:
        """Axes, and parameters and operations against a dense layer."""
        parameters = sum(factor.numel() for factor in self.factors)
        dense = self.in_features * self.out_features
        return (
            f"{self.sizes} to {self.out_sizes}, bias={self.bias is not None}, parameters="
            f"{parameters} ({parameters / dense:.1%} of dense), flops={2 * parameters} a row "
            f"(dense {2 * dense})"
        )


def _axes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"{name}: expected a list of integers, got {sizes!r}")
    if not sizes:
        raise ValueError(f"{name}: expected at least one axis, got none")
    for index, size in enumerate(sizes):
        require_integer("MonarchProduct", 1, **{f"{name}[{index}]": size})
    return tuple(sizes)
