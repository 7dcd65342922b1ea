"""The product as a citizen of torch: operator checks, gradients, compilers, autocast, memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.kernels.monarch import eager, monarch_matmul, op


@pytest.mark.opcheck
@pytest.mark.parametrize(
    ("activation", "dtype", "block_major", "bias"),
    [
        (None, torch.float32, False, False),
        (None, torch.bfloat16, True, True),
        ("relu", torch.float32, True, False),
        ("gelu", torch.bfloat16, False, True),
        ("gelu_tanh", torch.float32, False, True),
        ("silu", torch.float32, True, True),
    ],
)
def test_opcheck(make_case, activation, dtype, block_major, bias):
    case = make_case(tokens=5, k=3, p=4, l=2, s=3, r=2, bias=bias).to(dtype=dtype)
    x = case.x.detach().unflatten(1, (3, 4)).requires_grad_()
    rest = (activation, block_major)
    given = (x, case.right, case.left, case.bias, *rest)
    for keep in (True, False):
        torch.library.opcheck(op.monarch_op, (*given, keep, "reference"))
    tensors = [None if t is None else t.detach() for t in given[:4]]
    y, hidden = op.monarch_op(*tensors, *rest, True, "reference")
    for needs in (
        [True, True, True, bias],
        [True, False, False, False],
        [False, True, False, bias],
    ):
        torch.library.opcheck(
            op.monarch_backward_op,
            (*tensors, hidden, torch.randn_like(y), needs, *rest, "reference"),
        )


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "dense"])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu"])
def test_gradcheck(make_case, activation, backend):
    case = make_case(tokens=3, k=2, p=3, l=3, s=2, r=2).to(dtype=torch.float64)

    def function(x, right, left, bias):
        return monarch_matmul(x, right, left, bias=bias, activation=activation, backend=backend)

    assert torch.autograd.gradcheck(function, case.tensors)


def test_hidden_values_are_computed_again_where_they_were_not_kept(make_case):
    case = make_case(tokens=5, k=3, p=4, l=2, s=3, r=2)
    tensors = (case.x.unflatten(1, (3, 4)), case.right, case.left, case.bias, "silu", False)
    y, hidden = op.monarch_op(*tensors, True, "reference")
    again, nothing = op.monarch_op(*tensors, False, "reference")
    assert nothing.numel() == 0
    assert hidden.numel() == 5 * 3 * 2 * 2
    torch.testing.assert_close(y, again, rtol=0, atol=0)
    upstream, needs = torch.randn_like(y), [True] * 4
    kept = op.monarch_backward_op(*tensors[:4], hidden, upstream, needs, "silu", False, "reference")
    without = op.monarch_backward_op(
        *tensors[:4], nothing, upstream, needs, "silu", False, "reference"
    )
    torch.testing.assert_close(kept, without, rtol=0, atol=0)


def test_nothing_is_kept_where_there_is_no_graph(make_case, monkeypatch):
    case = make_case(tokens=64, k=4, p=4, l=4, s=4, r=2).to(dtype=torch.float32)
    kept = []

    def spied(problem, keep_hidden, backend):
        y, hidden = op.product(problem, keep_hidden, backend)
        kept.append(hidden is not None)
        return y, hidden

    monkeypatch.setattr(eager, "product", spied)
    with torch.no_grad():
        monarch_matmul(case.x, case.right, case.left, backend="reference")
    monarch_matmul(case.x, case.right, case.left, backend="reference")
    assert kept == [False, True]


def test_no_gradient_is_made_for_the_hidden_values(make_case):
    case = make_case(tokens=5, k=3, p=4, l=2, s=3, r=2).to(dtype=torch.float32)
    x = case.x.detach().unflatten(1, (3, 4)).requires_grad_()
    y, hidden = op.monarch_op(x, case.right, case.left, None, None, False, True, "reference")
    assert y.requires_grad
    assert not hidden.requires_grad


def test_nothing_is_kept_that_no_gradient_needs(make_case):
    case = make_case(tokens=64, k=4, p=4, l=4, s=4, r=2)
    case.x.requires_grad_()

    def saved(**options):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            monarch_matmul(case.x, case.right, case.left, backend="reference", **options)
        return count

    given = case.x.numel() + case.right.numel() + case.left.numel()
    assert saved() == given
    hidden = 64 * 4 * 4 * 2
    assert saved(activation="relu") == given + hidden
    case.left.requires_grad_()
    assert saved() == given + hidden


def test_compilers_fakes_and_subclasses_get_the_operator_and_plain_tensors_do_not(make_case):
    case = make_case(tokens=3, k=2, p=3, l=2, s=2, r=2)

    class Marked(torch.Tensor):
        pass

    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Names():
        monarch_matmul(*case.tensors[:3], backend="reference")
    assert not any("ropewalk" in name for name in seen)
    with Names():
        monarch_matmul(case.x.as_subclass(Marked), *case.tensors[1:3], backend="reference")
    assert "ropewalk.monarch.default" in seen
    with FakeTensorMode() as mode, Names():
        seen.clear()
        monarch_matmul(*map(mode.from_tensor, case.tensors[:3]), backend="reference")
    assert "ropewalk.monarch.default" in seen


def test_a_second_derivative_is_refused(make_case):
    case = make_case(tokens=3, k=2, p=3, l=2, s=2, r=2).to(dtype=torch.float64)
    y = monarch_matmul(*case.tensors[:3], backend="reference")
    (gradient,) = torch.autograd.grad(y.square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once.*dense"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "reference", "dense"])
@pytest.mark.parametrize("block_major", [False, True])
def test_compiles_as_a_whole(make_case, backend, block_major):
    case = make_case(tokens=6, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float32)

    def function(x, right, left, bias):
        return monarch_matmul(
            x, right, left, bias=bias, activation="gelu", block_major_output=block_major,
            backend=backend,
        )  # fmt: skip

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*case.tensors), function(*case.tensors)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, case.tensors, upstream),
        torch.autograd.grad(expected, case.tensors, upstream),
    )


def test_compiles_for_any_number_of_tokens(make_case):
    case = make_case(tokens=6, k=3, p=4, l=2, s=5, r=2)
    torch.compiler.reset()
    compiled = torch.compile(monarch_matmul, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (6, 9, 20):
        x = torch.randn(2, tokens, 12)
        torch.testing.assert_close(
            compiled(x, case.right, case.left), monarch_matmul(x, case.right, case.left)
        )


@pytest.mark.parametrize("block_major", [False, True])
def test_fakes_and_meta_have_shapes_and_strides(make_case, block_major):
    case = make_case(tokens=6, k=3, p=4, l=2, s=5, r=2)
    real = monarch_matmul(case.x, case.right, case.left, block_major_output=block_major)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (case.x, case.right, case.left)]
        fake = monarch_matmul(*fakes, block_major_output=block_major)
    metas = [t.to("meta") for t in (case.x, case.right, case.left)]
    meta = monarch_matmul(*metas, block_major_output=block_major)
    for found in (fake, meta):
        assert found.shape == real.shape
        assert found.stride() == real.stride()
        assert found.dtype == real.dtype


@pytest.mark.parametrize("backend", ["auto", "reference", "dense"])
def test_autocast(make_case, backend):
    case = make_case(tokens=6, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = monarch_matmul(
            case.x.double().float(), case.right, case.left, bias=case.bias, backend=backend
        )
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    for leaf in case.tensors:
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
    half = case.to(dtype=torch.bfloat16)
    same = monarch_matmul(half.x, half.right, half.left, bias=half.bias, backend=backend)
    torch.testing.assert_close(found, same, rtol=0, atol=0)


def test_autocast_leaves_complex_numbers_whole(make_case):
    case = make_case(tokens=3, k=2, p=3, l=3, s=2, r=2, bias=False)
    tensors = [torch.complex(t, t.flip(0)) for t in case.tensors]
    expected = monarch_matmul(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = monarch_matmul(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_nothing_is_left_unwritten(make_case, monarch_oracle, uninitialised):
    case = make_case(tokens=11, k=3, p=4, l=2, s=5, r=2).to(dtype=torch.float32)
    y = monarch_matmul(case.x, case.right, case.left, bias=case.bias, backend="reference")
    torch.testing.assert_close(y, monarch_oracle(case).float())
    for grad in torch.autograd.grad(y.sum(), case.tensors):
        assert grad.isfinite().all()


def test_forward_differentiation_has_tangents(make_case):
    """Also without a graph, where products are written to memory of their own, which has none."""
    case = make_case(tokens=300, k=2, p=8, l=2, s=8, r=2).to(dtype=torch.float64)
    x, right, left = (t.detach() for t in case.tensors[:3])
    tangent = torch.randn_like(x)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        y = torch.autograd.forward_ad.unpack_dual(
            monarch_matmul(dual, right, left, backend="reference")
        )
    assert y.tangent is not None
    torch.testing.assert_close(y.tangent, monarch_matmul(tangent, right, left))
