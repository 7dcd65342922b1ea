"""On a device: half precision as exact as two batched products of torch, and sizes past 2³¹."""

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.monarch import monarch_matmul, triton
from ropewalk.kernels.monarch.dense import batched_product
from ropewalk.kernels.monarch.problem import Needs, Problem

pytestmark = pytest.mark.gpu

# Tokens, and k, p, l, s, r.
SIZES = {
    "square": (1000, 16, 64, 16, 64, 4),
    "many blocks": (512, 64, 64, 64, 64, 1),
    "few blocks": (320, 4, 256, 4, 256, 64),
    "rectangle": (777, 3, 100, 5, 77, 6),
    "one token": (1, 8, 128, 8, 128, 16),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block_major", [False, True])
def test_as_exact_as_batched_products(
    size, activation, dtype, block_major, make_case, monarch_oracle, as_exact_as
):
    names = ("tokens", "k", "p", "l", "s", "r")
    case = make_case(**dict(zip(names, SIZES[size], strict=True)))
    case = case.to(dtype=dtype, device="cuda")

    def of(function, given) -> list[torch.Tensor]:
        y = function(given)
        y_grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        return [y, *torch.autograd.grad(y, given.tensors, y_grad.to(dtype).to(y))]

    def oracle(given) -> torch.Tensor:
        return monarch_oracle(given, activation, block_major=block_major)

    def plain(given) -> torch.Tensor:
        return batched_product(
            given.x, given.right, given.left, given.bias, activation, block_major
        )

    def kernels(given) -> torch.Tensor:
        return monarch_matmul(
            given.x, given.right, given.left, bias=given.bias, activation=activation,
            block_major_output=block_major, backend="triton",
        )  # fmt: skip

    truth = of(oracle, case.to(dtype=torch.float64))
    for peer, ours, true in zip(of(plain, case), of(kernels, case), truth, strict=True):
        as_exact_as(peer, ours, true)


@pytest.mark.parametrize("form", ["two kernels", "fused"])
def test_more_numbers_than_32_bits_count(form, as_exact_as):
    """2³² of x, of the hidden values and of the result: the last tokens are right."""
    tokens, blocks, within = 2**20, 16, 256
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    right, left = normal(blocks, blocks * 16, within) / 16, normal(blocks, within, 256) / 16
    x = torch.zeros(tokens, blocks, within, device="cuda", dtype=torch.bfloat16)
    x[-5:] = normal(5, blocks, within)
    y, _ = triton.forward(Problem(x, right, left), False, form)
    assert not y[:-5].any()
    rows = x[-5:].flatten(1)
    truth = batched_product(rows.double(), right.double(), left.double(), None, None, False)
    peer = batched_product(rows, right, left, None, None, False)
    as_exact_as(peer, y[-5:], truth)


def test_gradients_of_more_numbers_than_32_bits_count(as_exact_as):
    tokens, blocks, within = 2**20, 16, 256
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    right, left = normal(blocks, blocks * 16, within) / 16, normal(blocks, within, 256) / 16
    x = torch.zeros(tokens, blocks, within, device="cuda", dtype=torch.bfloat16)
    x[-5:] = normal(5, blocks, within)
    y_grad = torch.zeros(tokens, blocks * within, device="cuda", dtype=torch.bfloat16)
    y_grad[-5:] = normal(5, blocks * within)
    found = triton.backward(Problem(x, right, left), None, y_grad, Needs(True, True, True, False))

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (x[-5:].flatten(1), right, left)]
        y = batched_product(*leaves, None, None, False)
        return torch.autograd.grad(y, leaves, y_grad[-5:].to(dtype))

    assert found.x is not None
    ours = (found.x[-5:].flatten(1), found.right, found.left)
    for values in zip(by_autograd(x.dtype), ours, by_autograd(torch.float64), strict=True):
        as_exact_as(*values)


def test_auto_is_triton_on_a_device_where_factors_are_faster(make_case):
    case = make_case(tokens=4096, k=64, p=64, l=64, s=64, r=1).to(
        dtype=torch.bfloat16, device="cuda"
    )
    found = [
        monarch_matmul(case.x, case.right, case.left, bias=case.bias, backend=backend)
        for backend in ("auto", "triton")
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)
