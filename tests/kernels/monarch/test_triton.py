"""Triton's kernels equal the matrix itself: interpreted and on a device, in float32."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.monarch import ACTIVATIONS, monarch_matmul, triton
from ropewalk.kernels.monarch.dense import batched_product
from ropewalk.kernels.monarch.problem import Needs, Problem
from ropewalk.kernels.monarch.triton.products import product

ALL = Needs(True, True, True, True)
FORMS = ["two kernels", "fused"]
WHOLE_VECTORS = {"tokens": 32, "k": 3, "p": 20, "l": 2, "s": 35, "r": 3}
"""A multiple of 16 tokens, so that hidden values have the tokens last; more than one tile each."""
MANY_BLOCKS = {"tokens": 17, "k": 5, "p": 33, "l": 20, "s": 3, "r": 1}
SMALL = {"tokens": 5, "k": 3, "p": 4, "l": 2, "s": 3, "r": 2}

pytestmark = pytest.mark.usefixtures("uninitialised")


def problem(case, device, activation=None, block_major=False, dtype=torch.float32) -> Problem:
    """The same as an implementation gets it."""
    x, right, left, *bias = (t.detach().to(device, dtype) for t in case.tensors)
    blocks = x.unflatten(-1, right.shape[::2])
    return Problem(blocks, right, left, *(bias or [None]), activation, block_major)


def gradient_for(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)


def by_autograd(function: Callable[..., Tensor], case, y_grad: Tensor) -> list[Tensor]:
    """A function's result, and the gradients of x, right, left and bias."""
    y = function(case)
    return [y.detach(), *torch.autograd.grad(y, case.tensors, y_grad.to(y))]


def by_kernels(p: Problem, y_grad: Tensor, needs: Needs = ALL) -> list[Tensor]:
    """The same from the kernels, in two of them forward."""
    y, hidden = triton.forward(p, True, "two kernels")
    assert hidden is not None
    assert hidden.shape == (p.tokens * p.width,)
    grads = triton.backward(p, hidden, y_grad, needs)
    return [y, *(grad for grad in grads if grad is not None)]


@pytest.fixture
def check(kernel_device, as_exact_as, monarch_oracle):
    """`check(case, activation, block_major)`: result and gradients as exact as torch's."""

    def checked(case, activation=None, block_major=False, dtype=torch.float32, times=2.0) -> None:
        p = problem(case, kernel_device, activation, block_major, dtype)

        def plain(given) -> Tensor:
            return batched_product(
                given.x, given.right, given.left, given.bias, activation, block_major
            )

        rounded = case.to(dtype=dtype)
        y_grad = gradient_for(plain(rounded))
        truth = by_autograd(
            lambda given: monarch_oracle(given, activation, block_major=block_major),
            rounded.to(dtype=torch.float64),
            y_grad,
        )
        peer = by_autograd(plain, rounded.to(device=kernel_device), y_grad.to(kernel_device))
        ours = by_kernels(p, y_grad.to(kernel_device))
        assert len(ours) == len(truth)
        for ours_, peer_, truth_ in zip(ours, peer, truth, strict=True):
            assert ours_.dtype == dtype
            assert ours_.is_contiguous()
            shaped = [x.reshape(truth_.shape) for x in (peer_, ours_)]
            as_exact_as(*shaped, truth_, times=times)

    return checked


@pytest.mark.parametrize("block_major", [False, True], ids=["token-major", "block-major"])
def test_result_and_gradients(sizes, block_major, make_case, check):
    check(make_case(sizes), "gelu" if block_major else None, block_major)


@pytest.mark.parametrize("options", [WHOLE_VECTORS, MANY_BLOCKS], ids=["vectors", "blocks"])
def test_more_than_a_tile(options, make_case, check):
    check(make_case(**options), "silu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, make_case, check):
    check(make_case(**SMALL), activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, make_case, check, kernel_device):
    """The interpreter cuts bfloat16 off where a device rounds, which is twice the error."""
    cut_off = dtype == torch.bfloat16 and kernel_device.type == "cpu"
    check(make_case(**SMALL), "gelu_tanh", dtype=dtype, times=5.0 if cut_off else 2.0)


@pytest.mark.parametrize("block_major", [False, True], ids=["token-major", "block-major"])
def test_one_kernel(sizes, block_major, make_case, kernel_device, as_exact_as, monarch_oracle):
    """Both products fused, with groups of one output block, of several, and of all."""
    case = make_case(sizes, bias=not block_major)
    activation = "gelu" if block_major else None
    p = problem(case, kernel_device, activation, block_major)
    found, hidden = triton.forward(p, False, "fused")
    assert hidden is None
    truth = monarch_oracle(case, activation, block_major=block_major)
    assert found.is_contiguous()
    as_exact_as(truth.float(), found.reshape(truth.shape), truth)


@pytest.mark.parametrize(
    "options",
    [WHOLE_VECTORS, MANY_BLOCKS, {"tokens": 3, "k": 2, "p": 3, "l": 3, "s": 5, "r": 20}],
    ids=["columns", "groups", "ranks"],
)
def test_one_kernel_of_several_tiles(
    options, make_case, kernel_device, as_exact_as, monarch_oracle
):
    case = make_case(**options)
    found, _ = triton.forward(problem(case, kernel_device, "relu"), False, "fused")
    truth = monarch_oracle(case, "relu")
    as_exact_as(truth.float(), found, truth)


def test_one_kernel_has_no_hidden_values_to_keep(make_case, kernel_device):
    with pytest.raises(ValueError, match="expected 'two kernels' where hidden values"):
        triton.forward(problem(make_case(**SMALL), kernel_device), True, "fused")


@pytest.mark.parametrize("activation", [None, "silu"])
def test_only_what_is_needed(activation, make_case, kernel_device):
    p = problem(make_case(**SMALL), kernel_device, activation)
    y, hidden = triton.forward(p, True)
    y_grad = gradient_for(y)
    every = triton.backward(p, hidden, y_grad, ALL)
    for needs in itertools.starmap(Needs, itertools.product([True, False], repeat=4)):
        found = triton.backward(p, hidden, y_grad, needs)
        for grad, wanted, expected in zip(found, needs, every, strict=True):
            assert (grad is not None) == wanted
            if grad is not None:
                torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_hidden_values_that_were_not_kept_are_computed_again(activation, make_case, kernel_device):
    p = problem(make_case(**SMALL), kernel_device, activation)
    y, hidden = triton.forward(p, True)
    y_grad = gradient_for(y)
    kept, again = (triton.backward(p, given, y_grad, ALL) for given in (hidden, None))
    torch.testing.assert_close(kept, again, rtol=0, atol=0)


def in_columns(x: Tensor) -> Tensor:
    """The same numbers, the first of the last two dimensions contiguous."""
    return x.mT.contiguous().mT


def spread(x: Tensor) -> Tensor:
    """The same numbers, others between them."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


STRIDES = {
    "tokens contiguous": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "block-major": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "gaps": spread,
    "a part": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("form", FORMS)
def test_strides_of_x(stride, form, make_case, kernel_device):
    p = problem(make_case(**SMALL), kernel_device)
    expected, hidden = triton.forward(p, True)
    other = replace(p, x=STRIDES[stride](p.x))
    assert other.x.stride() != p.x.stride()
    found, _ = triton.forward(other, False, form)
    torch.testing.assert_close(found, expected)
    if form == "two kernels":
        pair = [triton.backward(each, hidden, gradient_for(found), ALL) for each in (p, other)]
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [in_columns, spread])
def test_strides_of_factors(change, form, make_case, kernel_device):
    """Those of a mirrored product are the transposed views of the other one's."""
    p = problem(make_case(**SMALL), kernel_device)
    other = replace(p, right=change(p.right), left=change(p.left))
    expected, found = (triton.forward(each, False, form)[0] for each in (p, other))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("block_major", [False, True], ids=["token-major", "block-major"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_strides_of_the_gradient(block_major, activation, make_case, kernel_device):
    """Those of a sum, which are 0, and of a transposed result."""
    p = problem(make_case(**SMALL), kernel_device, activation, block_major)
    y, hidden = triton.forward(p, True)
    ones = torch.ones_like(y)
    for y_grad, same in (
        (y.new_ones(()).expand(y.shape), ones),
        (in_columns(gradient_for(y)), gradient_for(y)),
    ):
        pair = [triton.backward(p, hidden, given, ALL) for given in (y_grad, same)]
        torch.testing.assert_close(*pair)


def test_results_repeat_bit_for_bit(make_case, kernel_device):
    """Sums over several parts of the tokens too."""
    p = problem(make_case(tokens=70, k=2, p=5, l=3, s=4, r=2), kernel_device, "gelu")
    y_grad = gradient_for(triton.forward(p, False)[0])
    once, again = (by_kernels(p, y_grad) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_and_missing_numbers(activation, kernel_device):
    """Nothing overflows far from 0, and what is not a number stays so."""
    one = torch.ones(1, 1, 1, device=kernel_device)
    z = torch.tensor([-1e18, -200.0, -20.0, 0.0, 20.0, 200.0, 1e18, torch.nan]).to(kernel_device)
    p = Problem(z[:, None, None], one, one, None, activation)
    y, hidden = triton.forward(p, True)
    grads = triton.backward(p, hidden, torch.ones_like(y), Needs(True, False, False, False))
    assert grads.x is not None
    expected = torch.where(z > 0, z, 0.0)
    expected[-1] = torch.nan
    torch.testing.assert_close(y[:, 0], expected, equal_nan=True)
    slope = (z > 0).float()
    slope[3] = 0.0 if activation == "relu" else 0.5
    torch.testing.assert_close(grads.x[:-1, 0, 0], slope[:-1])


def test_more_than_32_bits_between_ranks(kernel_device):
    """Hidden values whose tokens come last lie as many elements apart as there are tokens."""
    apart, ranks = 2**23 - 16, 260  # 259 · apart is more than 2³¹
    # A storage and not torch.empty, which would touch its 4 GiB here.
    memory = torch.UntypedStorage(apart * ranks * 2, device=kernel_device)
    hidden = torch.tensor([], dtype=torch.float16, device=kernel_device).set_(
        memory, 0, (16, 1, 1, ranks), (1, apart * ranks, apart * ranks, apart)
    )
    x = torch.randn(16, 1, 4).half().to(kernel_device)
    right = torch.randn(1, ranks, 4).half().to(kernel_device)
    product(x, right, hidden)
    expected = torch.einsum("tki,kri->tr", x.double(), right.double())
    torch.testing.assert_close(hidden[:, 0, 0].double(), expected, rtol=2e-3, atol=2e-3)


def test_the_public_function(make_case, kernel_device):
    """Leading dimensions, both layouts, and autograd from end to end."""
    case = make_case(**SMALL).to(device=kernel_device)
    case.x = case.x.detach().expand(2, *case.x.shape).clone().requires_grad_()

    def of(backend: str, block_major: bool) -> list[Tensor]:
        y = monarch_matmul(
            *case.tensors[:3], bias=case.bias, activation="silu",
            block_major_output=block_major, backend=backend,
        )  # fmt: skip
        return [y, *torch.autograd.grad(y, case.tensors, gradient_for(y))]

    for block_major in (False, True):
        torch.testing.assert_close(of("triton", block_major), of("reference", block_major))


def test_what_the_kernels_cannot_take(monkeypatch):
    assert "float16, bfloat16 and float32, got torch.complex64" in str(
        triton.unsupported(torch.empty(1, dtype=torch.complex64))
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    turing = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=torch.float32)
    assert "8.0" in str(triton.unsupported(turing))
    assert triton.unsupported(torch.empty(1, 1)) is None
