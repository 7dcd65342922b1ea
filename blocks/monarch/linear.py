"""`MonarchLinear`: a linear layer whose weight is a Monarch matrix.

    y = L P R x + b        parameters r·(l·k·p + k·l·s) instead of in · out

It takes the place of an `nn.Linear`: made new (its output has the same variance at initialisation),
or as the nearest to one that exists, and turns back into one.

Initialisation: with R of variance 1/p a hidden value has the variance of the input, and with L of
variance p / (3 · in · r) the output has a third of it, as under `nn.Linear`'s U(±1/√in). The
factors each at U(±1/√fan_in) would give a ninth: 0.33 instead of 0.58 standard deviations.

Source: Dao et al., arXiv 2204.00595; kexue.fm/archives/10249.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.monarch.inverse import log_abs_det, monarch_solve, monarch_transpose
from ropewalk.blocks.monarch.projection import monarch_project
from ropewalk.blocks.monarch.shape import Blocks, MonarchShape
from ropewalk.kernels.autocast import AUTOCAST_DEVICES
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.monarch import (
    Backend,
    check_factors,
    merged_from,
    monarch_matmul,
    monarch_to_dense,
)
from ropewalk.kernels.monarch.backend import BACKENDS


class MonarchLinear(nn.Module):
    """A linear layer of two block-diagonal factors.

    Example:
        >>> layer = MonarchLinear(512, 2048, nblocks=8)
        >>> layer(torch.randn(2, 3, 512)).shape
        torch.Size([2, 3, 2048])
        >>> near = MonarchLinear.from_linear(nn.Linear(64, 64), nblocks=4, rank=8)
        >>> near.relative_error < 0.6
        True

    Attributes:
        right: R, (k, l·r, p).
        left: L, (l, s, k·r).
        bias: (out_features,), or None.
        shape: the sizes, `MonarchShape`.
        relative_error: ‖W − M‖ / ‖W‖ of the weight that the layer was projected from; None if it
            was not. It is not part of the `state_dict`.

    Args:
        in_features: of a row. Where blocks do not divide it, rows are filled up with zeros.
        out_features: of the result. Features over the edge of the last block are left out.
        nblocks: (input blocks k, output blocks l), or a number for both.
        rank: of a slice; None makes the hidden layer as wide as the smaller side; see
            `MonarchShape.of`.
        bias: whether there is one.
        backend: see `ropewalk.kernels.monarch.monarch_matmul`.
        device: of the parameters; "meta" for none yet: `to_empty` and `reset_parameters` later.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: numbers of blocks that leave slices empty, a rank that no slice has, an unknown
            backend, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    right: nn.Parameter
    left: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        nblocks: Blocks = 4,
        rank: int | None = None,
        bias: bool = True,
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = MonarchShape.of(in_features, out_features, nblocks=nblocks, rank=rank)
        check_backend(backend, BACKENDS)
        if not isinstance(bias, bool):
            raise TypeError(
                f"bias: expected True or False, got {type(bias).__name__}; assign values to "
                ".bias.data afterwards"
            )
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating-point one, got {dtype}")
        self._set_shape(shape)
        self.backend: Backend = backend
        self.relative_error: float | None = None
        self.right = nn.Parameter(torch.empty(shape.right_shape, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty(shape.left_shape, device=device, dtype=dtype))
        vector = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if vector is None else nn.Parameter(vector))
        self.reset_parameters()

    def _set_shape(self, shape: MonarchShape) -> None:
        self.shape = shape
        self.in_features, self.out_features = shape.in_features, shape.out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        nblocks: Blocks = 4,
        rank: int | None = None,
        backend: Backend = "auto",
    ) -> "MonarchLinear":
        """The layer nearest to a dense one, with its bias, dtype, device and mode.

        Args:
            linear: what `monarch_project` is given the weight of. It is left as it is.
            nblocks: see `MonarchLinear`.
            rank: see `MonarchLinear`.
            backend: see `MonarchLinear`.

        Raises:
            ValueError: as `monarch_project`; a lazy layer that has not seen its input.
            TypeError: not an `nn.Linear`, or an argument of the wrong kind.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected an nn.Linear, got {type(linear).__name__}")
        if nn.parameter.is_lazy(linear.weight):
            raise ValueError(
                "linear: expected a layer with a weight, got a lazy one; call it once before"
            )
        found = monarch_project(linear.weight, nblocks=nblocks, rank=rank)
        layer = cls.from_factors(
            found.right, found.left, linear.bias, shape=found.shape, backend=backend
        )
        layer.relative_error = found.relative_error
        layer.right.requires_grad_(linear.weight.requires_grad)
        layer.left.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def from_factors(
        cls,
        right: Float[Tensor, "input_blocks output_blocks*rank input_size"],
        left: Float[Tensor, "output_blocks output_size input_blocks*rank"],
        bias: Float[Tensor, " out_features"] | None = None,
        *,
        shape: MonarchShape | None = None,
        backend: Backend = "auto",
    ) -> "MonarchLinear":
        """A layer with copies of factors that exist.

        Args:
            right: R.
            left: L, of its dtype and on its device.
            bias: added to the result.
            shape: the sizes, where the blocks do not divide them; all of the blocks if None.
            backend: see `MonarchLinear`.

        Raises:
            ValueError: factors that do not fit each other or the shape.
        """
        check_factors(right, left)
        if shape is None:
            (k, rows, p), (blocks, size, _) = right.shape, left.shape
            shape = MonarchShape(k * p, blocks * size, k, blocks, rows // blocks)
        given: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "right": (right, shape.right_shape),
            "left": (left, shape.left_shape),
        }
        if bias is not None:
            given["bias"] = (bias, (shape.out_features,))
        for name, (tensor, expected) in given.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        check_backend(backend, BACKENDS)
        layer._set_shape(shape)
        layer.backend, layer.relative_error = backend, None
        for name in ("right", "left"):
            factor = given[name][0].detach().clone(memory_format=torch.contiguous_format)
            layer.register_parameter(name, nn.Parameter(factor))
        vector = None if bias is None else nn.Parameter(bias.detach().clone())
        layer.register_parameter("bias", vector)
        return layer

    def reset_parameters(self) -> None:
        """Draws the factors anew, so that the output varies as `nn.Linear`'s does."""
        shape = self.shape
        right_bound = math.sqrt(3 / shape.input_size)
        left_bound = math.sqrt(shape.input_size / (shape.in_features * shape.rank))
        nn.init.uniform_(self.right, -right_bound, right_bound)
        nn.init.uniform_(self.left, -left_bound, left_bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(shape.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """The product with the matrix, plus the bias.

        Args:
            x: floating-point in the dtype of the parameters, or any under `torch.autocast`.

        Raises:
            ValueError: a width or dtype that does not fit.
        """
        shape = self.shape
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if x.ndim < 1 or x.shape[-1] != shape.in_features:
            raise ValueError(
                f"x: expected (..., {shape.in_features}), got {tuple(x.shape)}, for a layer of "
                f"{shape.in_features} to {shape.out_features} features"
            )
        if x.dtype != self.right.dtype and not _under_autocast(x):
            raise ValueError(
                f"x: expected {self.right.dtype} as the parameters are, got {x.dtype}; use "
                "x.to(layer.right), layer.to(x.dtype), or torch.autocast"
            )
        bias, over = self.bias, shape.padded_out - shape.out_features
        if shape.padded_in > shape.in_features:
            x = functional.pad(x, (0, shape.padded_in - shape.in_features))
        if bias is not None and over:
            bias = functional.pad(bias, (0, over))
        y = monarch_matmul(x, self.right, self.left, bias=bias, backend=self.backend)
        return y[..., : shape.out_features].contiguous() if over else y

    def transpose(self) -> "MonarchLinear":
        """The layer of the transposed matrix, without a bias: it has copies of the factors."""
        right, left = monarch_transpose(self.right, self.left)
        return MonarchLinear.from_factors(
            right, left, shape=self.shape.mirrored, backend=self.backend
        ).train(self.training)

    def solve(self, y: Float[Tensor, "*batch out_features"]) -> Float[Tensor, "*batch in_features"]:
        """The x that the layer makes y of; see `monarch_solve`.

        Raises:
            ValueError: a layer whose blocks are not square, or that fills up features; a singular
                block; a width or dtype that does not fit.
        """
        self._check_square()
        if not isinstance(y, Tensor):
            raise TypeError(f"y: expected a tensor, got {type(y).__name__}")
        if y.ndim < 1 or y.shape[-1] != self.out_features:
            raise ValueError(f"y: expected (..., {self.out_features}), got {tuple(y.shape)}")
        if _under_autocast(y):
            y = y.to(self.right.dtype)  # what the layer made under it is narrower
        return monarch_solve(self.right, self.left, y if self.bias is None else y - self.bias)

    def log_abs_det(self) -> Float[Tensor, ""]:
        """The logarithm of the absolute value of the determinant; see `log_abs_det`.

        Raises:
            ValueError: a layer whose blocks are not square, or that fills up features.
        """
        self._check_square()
        return log_abs_det(self.right, self.left)

    def _check_square(self) -> None:
        shape = self.shape
        if (shape.padded_in, shape.padded_out) != (shape.in_features, shape.out_features):
            raise ValueError(
                f"nblocks: expected numbers that divide the features of a layer that is to be "
                f"inverted, got {shape.nblocks} for {shape.in_features} to {shape.out_features}"
            )

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The matrix itself, computed from the factors at each access; differentiable."""
        dense = monarch_to_dense(self.right, self.left)
        return dense[: self.out_features, : self.in_features]

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense layer that computes the same, in the dtype and on the device of the factors."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        linear.weight = nn.Parameter(
            self.weight.contiguous(),
            requires_grad=self.right.requires_grad or self.left.requires_grad,
        )
        if self.bias is not None:
            bias = self.bias
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, and parameters and operations against a dense layer."""
        shape = self.shape
        parts = [
            f"{shape.in_features}, {shape.out_features}, nblocks={shape.nblocks}",
            f"rank={shape.rank}, bias={self.bias is not None}",
            f"parameters={shape.parameters} ({shape.parameters / shape.dense_parameters:.1%} of "
            f"dense), flops={shape.flops} a row (dense {shape.dense_flops})",
        ]
        if self.relative_error is not None:
            parts.append(f"relative_error={self.relative_error:.4f}")
        parts.append(f"backend={self._backend_in_words()}")
        return ", ".join(parts)

    def _backend_in_words(self) -> str:
        """The backend, and from how many rows `auto` multiplies by the merged matrix."""
        if self.backend != "auto":
            return self.backend
        rows = merged_from(self.right, self.left)
        where = f"{str(self.right.dtype).removeprefix('torch.')} on {self.right.device.type}"
        return f"auto ({where}: {'never dense' if rows is None else f'dense from {rows} rows'})"


def _under_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x is, so that its dtype may be another than the parameters'."""
    kind = x.device.type
    if not (kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind)):
        return False
    return x.is_floating_point()
