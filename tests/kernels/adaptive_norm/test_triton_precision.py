"""On a device: as exact as plain torch in the same dtype, and sizes past 2³¹."""

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from ropewalk.kernels.adaptive_norm import NORMS, gated_adaptive_norm

pytestmark = pytest.mark.gpu

SIZES = {
    "XL": ((4, 256, 1152), None),
    "L": ((2, 256, 1024), None),
    "S": ((3, 64, 384), None),
    "one token": ((1, 1, 1152), None),
    "nothing divides": ((3, 77, 1001), None),
    "narrow": ((2, 50, 40), None),
    "wide": ((1, 33, 5120), None),
    "widest": ((1, 9, 8192), None),
    "packed": ((1, 1000, 1152), (256, 0, 1, 400, 343, 0)),
    "many packed": ((1, 900, 64), (3,) * 300),
}


def plain(case):
    """The same in plain torch, rounded wherever torch rounds."""
    c = case
    rows = (c.gate, c.shift, c.scale)
    if c.cu_seqlens is None:
        gate, shift, scale = (row[:, None] for row in rows)
    else:
        lengths = c.cu_seqlens.diff()
        gate, shift, scale = (row.repeat_interleave(lengths, 0)[None] for row in rows)
    residual = c.x + gate * c.branch
    shape = residual.shape[2:]
    if c.norm == "layer":
        normed = functional.layer_norm(residual, shape, c.weight, c.bias, c.eps)
    else:
        normed = functional.rms_norm(residual, shape, c.weight, c.eps)
    return [residual, normed * (1 + scale) + shift]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_as_exact_as_plain_torch(
    size, norm, dtype, make_case, chain_oracle, with_gradients, as_exact_as
):
    shape, lengths = SIZES[size]
    affine = "weight" if norm == "rms" else ""
    case = make_case(shape, lengths, norm=norm, affine=affine).to(dtype, "cuda")
    truth = with_gradients(chain_oracle, case.to(torch.float64, "cpu"))
    peer = with_gradients(plain, case)
    for name, value in with_gradients(lambda c: c.run("triton"), case).items():
        as_exact_as(peer[name], value, truth[name])


def test_rows_that_are_chunks_give_one_gradient(as_exact_as):
    """As a model does it: six chunks of one product, in the order of DiT."""
    product = torch.randn(4, 6 * 1152, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x, branch = torch.randn(2, 4, 256, 1152, device="cuda", dtype=torch.bfloat16)
    shift, scale, gate, *_ = product.chunk(6, dim=1)
    found = [
        torch.autograd.grad(
            gated_adaptive_norm(x, branch, gate, shift, scale, backend=backend)[1].sum(), product
        )[0]
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)
    assert not found[0][:, 3 * 1152 :].any()


def test_more_numbers_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 48 * 2**30:
        pytest.skip("needs 48 GiB of free memory")
    shape = (2, 2**20 + 1, 1152)  # 2.4 · 10⁹
    x = torch.zeros(shape, device="cuda", dtype=torch.bfloat16)
    x[1, -3:] = torch.randn(3, 1152, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(3, 2, 1152, device="cuda", dtype=torch.bfloat16)
    residual, y = gated_adaptive_norm(x, x, *rows)
    last = gated_adaptive_norm(
        x[1:, -3:], x[1:, -3:], *(row[1:] for row in rows), backend="reference"
    )
    torch.testing.assert_close((residual[1:, -3:], y[1:, -3:]), last)
    assert not residual[0].any()
