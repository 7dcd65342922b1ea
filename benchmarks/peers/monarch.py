"""Who multiplies rows by a matrix of few parameters, and by one of all of them.

    auto, triton, reference   `ropewalk.kernels.monarch.monarch_matmul` with that backend
    merged                    its backend "dense": the factors' product, then one product with it
    triton-two-kernels, triton-fused
                              its Triton kernels in that form, forward only; `triton` chooses one
    two-bmm                   the form of HazyResearch/fly: two batched products into transposed
                              buffers, a permuting copy between them, backward likewise
    einsum-compiled           the two equations as einsums through torch.compile
    dense                     one product with a matrix of as many rows and columns
    low-rank                  two thin products with as many parameters as the factors have
    block-diagonal            one batched product with as many parameters

Low rank and block diagonal are other matrices: they say what as many parameters cost in a simpler
form. Two-bmm is written from its mathematics; its output blocks are contiguous as everybody's here,
so that it is spared a second permuting copy, which fly's order of the outputs needs.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.case import Unavailable
from benchmarks.monarch import Layer
from ropewalk.kernels.backends import triton_unavailable
from ropewalk.kernels.monarch import Backend, monarch_matmul
from ropewalk.kernels.monarch.problem import Problem

if TYPE_CHECKING:
    from benchmarks.monarch import ProductShape, ProductWorkload

BACKENDS: dict[str, Backend] = {
    "auto": "auto",
    "triton": "triton",
    "reference": "reference",
    "merged": "dense",
}
FORMS = {"triton-two-kernels": "two kernels", "triton-fused": "fused"}
"""Forward only."""


def build(name: str, workload: "ProductWorkload") -> Layer:
    """What a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name == "dense":
        s = workload.shape
        weight = workload.draw(s.features, s.features, over=s.features)
        return Layer(functional.linear, (weight,), _itself)
    if name == "low-rank":
        return _low_rank(workload)
    if name == "block-diagonal":
        return _block_diagonal(workload)
    factors = (workload.right, workload.left)
    if name == "two-bmm":
        return Layer(_TwoProducts.apply, factors, monarch_matrix)
    if name == "einsum-compiled":
        torch.compiler.reset()
        compiled = torch.compile(einsums, dynamic=False, fullgraph=True)
        return Layer(compiled, factors, monarch_matrix)
    if name in FORMS:
        return Layer(_kernels(FORMS[name], workload), factors, monarch_matrix)
    return Layer(_library(BACKENDS[name], workload), factors, monarch_matrix)


def monarch_matrix(right: Tensor, left: Tensor) -> Tensor:
    """W of the factors."""
    (k, rows, p), (blocks, s, _) = right.shape, left.shape
    rank = rows // blocks
    slices = torch.einsum(
        "lskr,klrp->lskp", left.view(blocks, s, k, rank), right.view(k, blocks, rank, p)
    )
    return slices.reshape(blocks * s, k * p)


def _itself(weight: Tensor) -> Tensor:
    return weight


def einsums(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """The two equations as they are written."""
    (k, rows, p), (blocks, s, _) = right.shape, left.shape
    rank = rows // blocks
    hidden = torch.einsum("bki,kqi->bkq", x.view(-1, k, p), right).view(-1, k, blocks, rank)
    left = left.view(blocks, s, k, rank)
    return torch.einsum("bklr,lskr->bls", hidden, left).reshape(-1, blocks * s)


class _TwoProducts(torch.autograd.Function):
    """Two batched products into transposed buffers; what lies between is permuted by a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        (k, rows, p), (blocks, s, _) = right.shape, left.shape
        tokens = x.shape[0]
        columns = x.view(tokens, k, p).transpose(0, 1)
        first = x.new_empty(tokens, k, rows)
        torch.bmm(columns, right.mT, out=first.transpose(0, 1))
        hidden = _permuted(first, blocks)
        y = x.new_empty(tokens, blocks, s)
        torch.bmm(hidden, left.mT, out=y.transpose(0, 1))
        ctx.save_for_backward(x, right, left, hidden)
        return y.view(tokens, blocks * s)

    @staticmethod
    def backward(ctx: Any, *y_grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, right, left, hidden = ctx.saved_tensors
        (k, _, p), (blocks, s, inner) = right.shape, left.shape
        tokens = x.shape[0]
        y_grad = y_grads[0].view(tokens, blocks, s).transpose(0, 1)
        left_grad = torch.bmm(y_grad.mT, hidden)
        second = x.new_empty(tokens, blocks, inner)
        torch.bmm(y_grad, left, out=second.transpose(0, 1))
        hidden_grad = _permuted(second, k)
        x_grad = x.new_empty(tokens, k, p)
        torch.bmm(hidden_grad, right, out=x_grad.transpose(0, 1))
        right_grad = torch.bmm(hidden_grad.mT, x.view(tokens, k, p).transpose(0, 1))
        return x_grad.view(tokens, k * p), right_grad, left_grad


def _permuted(hidden: Tensor, others: int) -> Tensor:
    """(others, tokens, blocks · rank), contiguous, of (tokens, blocks, others · rank)."""
    apart = hidden.unflatten(2, (others, -1))
    return apart.permute(2, 0, 1, 3).contiguous().flatten(2)


def _low_rank(workload: "ProductWorkload") -> Layer:
    s = workload.shape
    rank = max(1, s.factor_parameters // (2 * s.features))
    down = workload.draw(rank, s.features, over=s.features)
    up = workload.draw(s.features, rank, over=rank)

    def product(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, down), up)

    return Layer(product, (down, up), _low_rank_matrix)


def _low_rank_matrix(down: Tensor, up: Tensor) -> Tensor:
    return up @ down


def diagonal_blocks(shape: "ProductShape") -> int:
    """Blocks on the diagonal: the most that divide the features and have the parameters."""
    most = max(1, shape.features**2 // shape.factor_parameters)
    return next(count for count in range(most, 0, -1) if shape.features % count == 0)


def _block_diagonal(workload: "ProductWorkload") -> Layer:
    s, count = workload.shape, diagonal_blocks(workload.shape)
    size = s.features // count
    blocks = workload.draw(count, size, size, over=size)

    def product(x: Tensor, blocks: Tensor) -> Tensor:
        columns = x.view(-1, count, size).transpose(0, 1)
        if x.device.type == "cpu" and x.dtype.itemsize == 2:
            columns = columns.contiguous()  # matrix units take a copy twice as fast
        return torch.bmm(columns, blocks.mT).transpose(0, 1).reshape(x.shape)

    return Layer(product, (blocks,), _block_diagonal_matrix)


def _block_diagonal_matrix(blocks: Tensor) -> Tensor:
    return torch.block_diag(*blocks)


def _library(backend: "Backend", workload: "ProductWorkload") -> Any:
    def product(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        y = monarch_matmul(x, right, left, backend=backend)
        return cast("Tensor", y)

    try:  # a backend that the op refuses here is absent, not wrong
        with torch.no_grad():
            product(workload.x[:1], workload.right, workload.left)
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
    return product


def _kernels(form: str, workload: "ProductWorkload") -> Any:
    if workload.shape.backward:
        raise Unavailable("a form is forced in the forward only")
    reason = triton_unavailable(workload.x)
    if reason is not None:
        raise Unavailable(reason)
    from ropewalk.kernels.monarch import triton

    def product(x: Tensor, right: Tensor, left: Tensor) -> Tensor:
        blocks = x.view(-1, right.shape[0], right.shape[2])
        return triton.forward(Problem(blocks, right, left), False, cast("Any", form))[0]

    return product
