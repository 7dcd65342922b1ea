"""The product, its gradients and its layouts against the dense matrix in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.kernels.monarch import ACTIVATIONS, monarch_matmul, monarch_to_dense
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.reference import chunks

BACKENDS = ["auto", "reference", "dense"]
ALL_ACTIVATIONS = [None, *ACTIVATIONS]


def gradients(y, tensors):
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return torch.autograd.grad(y, tensors, upstream)


def test_the_matrix_is_what_its_entries_say(make_case, sizes, monarch_matrix):
    case = make_case(sizes)
    dense = monarch_to_dense(case.right.double(), case.left.double())
    torch.testing.assert_close(dense, monarch_matrix(case.right, case.left))
    assert dense.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_product_is_one_with_the_matrix(make_case, sizes, monarch_matrix, backend):
    case = make_case(sizes, bias=False)
    expected = case.x.double() @ monarch_matrix(case.right, case.left).T
    found = monarch_matmul(case.x, case.right, case.left, backend=backend)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
@pytest.mark.parametrize("block_major", [False, True])
def test_values_and_gradients(make_case, sizes, monarch_oracle, backend, activation, block_major):
    case = make_case(sizes).to(dtype=torch.float64)
    found = monarch_matmul(
        case.x, case.right, case.left, bias=case.bias, activation=activation,
        block_major_output=block_major, backend=backend,
    )  # fmt: skip
    expected = monarch_oracle(case, activation, block_major=block_major)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        gradients(found, case.tensors), gradients(expected, case.tensors), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_each_gradient_alone(make_case, monarch_oracle, wanted, activation):
    case = make_case(tokens=9, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float64)
    for place, tensor in enumerate(case.tensors):
        tensor.requires_grad_(place == wanted)
    leaf = case.tensors[wanted]
    found = monarch_matmul(
        case.x, case.right, case.left, bias=case.bias, activation=activation, backend="reference"
    )
    expected = monarch_oracle(case, activation)
    torch.testing.assert_close(gradients(found, [leaf]), gradients(expected, [leaf]))


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_chunks_of_tokens_change_nothing(make_case, monarch_oracle, monkeypatch, activation):
    monkeypatch.setattr(chunks, "CACHED", 1)
    monkeypatch.setattr(chunks, "FEWEST", 3)
    case = make_case(tokens=24, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float64)
    found = monarch_matmul(
        case.x, case.right, case.left, bias=case.bias, activation=activation, backend="reference"
    )
    expected = monarch_oracle(case, activation)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, case.tensors), gradients(expected, case.tensors))


def test_gradients_of_half_precision_are_summed_in_float32(make_case, monarch_oracle, monkeypatch):
    """Over many chunks, where a sum in half precision would lose what each of them adds."""
    monkeypatch.setattr(chunks, "CACHED", 1)
    half = make_case(tokens=4096, k=2, p=2, l=2, s=2, r=1).to(dtype=torch.bfloat16)
    exact = half.to(dtype=torch.float64)
    for activation in (None, "gelu"):
        found = monarch_matmul(
            half.x, half.right, half.left, bias=half.bias, activation=activation,
            backend="reference",
        )  # fmt: skip
        expected = monarch_oracle(exact, activation)
        ours = torch.autograd.grad(found, half.tensors[1:], torch.ones_like(found))
        theirs = torch.autograd.grad(expected, exact.tensors[1:], torch.ones_like(expected))
        for mine, true in zip(ours, theirs, strict=True):
            assert ((mine.double() - true).norm() / true.norm()).item() < 0.01


@pytest.mark.parametrize(("tokens", "width"), [(0, 5), (1, 10**6), (1000, 4096), (77, 1)])
def test_chunks_cover_all_tokens_once(tokens, width):
    x = torch.empty(tokens, 1, 1, device="cpu")
    problem = Problem(x, torch.empty(1, width, 1), torch.empty(1, 1, width))
    places = [
        place for chunk in chunks.token_chunks(problem) for place in range(chunk.start, chunk.stop)
    ]
    assert places == list(range(tokens))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_half_precision_is_as_exact_as_torch(
    make_case, monarch_oracle, as_exact_as, backend, dtype, activation
):
    half = make_case(tokens=65, k=4, p=16, l=4, s=24, r=3).to(dtype=dtype)
    exact = half.to(dtype=torch.float64)
    truth = monarch_oracle(exact, activation)
    # Plain torch: the two batched products with their permutations written out.
    k, _rows, _ = half.right.shape
    blocks = half.left.shape[0]
    inner = torch.einsum("tki,kri->tkr", half.x.unflatten(1, (k, -1)), half.right)
    inner = inner.unflatten(2, (blocks, -1)).permute(0, 2, 1, 3).flatten(2)
    plain = torch.einsum("tlr,lsr->tls", inner, half.left).flatten(1) + half.bias
    plain = plain if activation is None else torch.nn.functional.gelu(plain)
    found = monarch_matmul(
        half.x, half.right, half.left, bias=half.bias, activation=activation, backend=backend
    )
    assert found.dtype == dtype
    as_exact_as(plain, found, truth)
    for peer, ours, true in zip(
        gradients(plain, half.tensors),
        gradients(found, half.tensors),
        gradients(truth, exact.tensors),
        strict=True,
    ):
        assert ours.dtype == dtype
        as_exact_as(peer, ours, true)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block_major", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 0, 4)])
def test_leading_dimensions(make_case, backend, block_major, batch):
    case = make_case(tokens=1, k=2, p=3, l=4, s=2, r=2)
    x = torch.randn(*batch, 6)
    found = monarch_matmul(
        x, case.right, case.left, block_major_output=block_major, backend=backend
    )
    expected = (x @ monarch_to_dense(case.right, case.left).T).unflatten(-1, (4, 2))
    if block_major:
        expected = expected.movedim(-2, 0)
        assert found.shape == (4, *batch, 2)
    else:
        expected = expected.flatten(-2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(make_case, monarch_oracle, backend):
    case = make_case(tokens=6, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float64)
    expected = monarch_oracle(case)
    grown = [torch.zeros(tuple(2 * n for n in t.shape), dtype=t.dtype) for t in case.tensors]
    views = []
    for space, tensor in zip(grown, case.tensors, strict=True):
        view = space[tuple(slice(None, None, 2) for _ in tensor.shape)]
        view.copy_(tensor.detach())
        views.append(view.requires_grad_())
    x, right, left, bias = views
    found = monarch_matmul(x, right, left, bias=bias, backend=backend)
    torch.testing.assert_close(found, expected)
    # A gradient that arrives transposed or expanded.
    for upstream in (torch.randn(10, 6, dtype=x.dtype).T, torch.ones(1, 1).double().expand(6, 10)):
        torch.testing.assert_close(
            torch.autograd.grad(found, views, upstream, retain_graph=True),
            torch.autograd.grad(expected, case.tensors, upstream, retain_graph=True),
        )
    # Transposed in its last two dimensions, as the mirrored product has its factors.
    flipped = monarch_matmul(
        x, right.mT.contiguous().mT, left.mT.contiguous().mT, bias=bias, backend=backend
    )
    torch.testing.assert_close(flipped, expected)


def test_complex_numbers(make_case):
    case = make_case(tokens=4, k=2, p=3, l=3, s=2, r=2)
    tensors = [torch.complex(t, t.flip(0)) for t in (case.x, case.right, case.left, case.bias)]
    x, right, left, bias = (t.to(torch.complex128).requires_grad_() for t in tensors)
    for backend in BACKENDS:
        found = monarch_matmul(x, right, left, bias=bias, backend=backend)
        torch.testing.assert_close(found, x @ monarch_to_dense(right, left).T + bias)
    assert torch.autograd.gradcheck(
        lambda *t: monarch_matmul(*t[:3], bias=t[3]), (x, right, left, bias)
    )


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.tuples(*[st.integers(1, 9)] * 6),
    activation=st.sampled_from(ALL_ACTIVATIONS),
    block_major=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_sizes(make_case, monarch_oracle, numbers, activation, block_major, bias, seed):
    names = ("tokens", "k", "p", "l", "s", "r")
    case = make_case(**dict(zip(names, numbers, strict=True)), bias=bias, seed=seed)
    case = case.to(dtype=torch.float64)
    found = monarch_matmul(
        case.x, case.right, case.left, bias=case.bias, activation=activation,
        block_major_output=block_major, backend="reference",
    )  # fmt: skip
    expected = monarch_oracle(case, activation, block_major=block_major)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, case.tensors), gradients(expected, case.tensors))
