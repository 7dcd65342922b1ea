"""The scan as a citizen of torch: operator checks, gradients, compilers, transforms, autocast."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ropewalk.kernels.linear_scan import linear_scan, op


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_opcheck(make_scan, structure, dtype, packed, backend):
    cu = torch.tensor([0, 2, 2, 7], dtype=torch.int32) if packed else None
    scan = make_scan(
        structure, 1 if packed else 2, 7, 3, sequences=3 if packed else None,
        dtype=torch.complex128 if dtype.is_complex else torch.float64,
    ).to(dtype=dtype)  # fmt: skip
    for initial in (scan.initial, None):
        given = (scan.a, scan.b, initial, cu, True, backend)
        torch.library.opcheck(op.linear_scan_op, given)
        a, b, x = (None if t is None else t.detach() for t in given[:3])
        states = op.linear_scan_op(a, b, x, cu, True, backend)
        for needs in ([True, True, initial is not None], [False, True, False]):
            rest = (cu, states, torch.randn_like(states), needs, True, backend)
            torch.library.opcheck(op.linear_scan_backward_op, (a, x, *rest))


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("reverse", [False, True])
def test_opcheck_of_no_steps(make_scan, structure, reverse, backend):
    """What comes out of an operator must not be what went in."""
    scan = make_scan(structure, 2, 0, 3)
    torch.library.opcheck(op.linear_scan_op, (*scan.tensors, None, reverse, backend))
    a, b, x = (t.detach() for t in scan.tensors)
    rest = (None, b, torch.empty_like(b), [True] * 3, reverse, backend)
    torch.library.opcheck(op.linear_scan_backward_op, (a, x, *rest))


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(make_scan, structure, dtype, reverse, backend):
    scan = make_scan(structure, 2, 5, 2, dtype=dtype)

    def function(*tensors):
        return linear_scan(*tensors, reverse=reverse, backend=backend)

    assert torch.autograd.gradcheck(function, scan.tensors)


def test_the_last_state_is_differentiable(make_scan, scan_oracle):
    """Two halves joined by it are the whole."""
    scan = make_scan("diagonal", 2, 40, 3)
    whole = linear_scan(scan.a, scan.b, scan.initial)
    first = linear_scan(scan.a[:, :17], scan.b[:, :17], scan.initial)
    second = linear_scan(scan.a[:, 17:], scan.b[:, 17:], first[:, -1])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    upstream = torch.randn_like(second)
    torch.testing.assert_close(
        torch.autograd.grad(second, scan.tensors, upstream),
        torch.autograd.grad(whole[:, 17:], scan.tensors, upstream),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_whole(make_scan, structure, packed):
    cu = torch.tensor([0, 4, 9]) if packed else None
    scan = make_scan(structure, 1 if packed else 2, 9, 3, sequences=2 if packed else None).to(
        dtype=torch.float32
    )

    def function(*tensors):
        return linear_scan(*tensors, reverse=True, cu_seqlens=cu).tanh()

    wanted = function(*scan.tensors)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*scan.tensors)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, scan.tensors, upstream),
        torch.autograd.grad(wanted, scan.tensors, upstream),
    )


def test_operator_and_eager_agree(make_scan, structure):
    scan = make_scan(structure, 2, 9, 3)
    eager = linear_scan(*scan.tensors)
    through = op.linear_scan_op(scan.a, scan.b, scan.initial, None, False, "auto")
    torch.testing.assert_close(through, eager, rtol=0, atol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_transforms_of_torch_func(make_scan, scan_oracle, structure, reverse):
    scan = make_scan(structure, 2, 11, 3)
    tensors = tuple(t.detach() for t in scan.tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def ours(*given):
        return linear_scan(*given, reverse=reverse)

    def theirs(*given):
        return scan_oracle(*given, reverse=reverse)

    torch.testing.assert_close(
        torch.func.jvp(ours, tensors, tangents), torch.func.jvp(theirs, tensors, tangents)
    )
    stacked = tuple(torch.stack([t, t.flip(0)]) for t in tensors)
    torch.testing.assert_close(
        torch.func.vmap(ours)(*stacked),
        torch.stack([theirs(*(t[i] for t in stacked)) for i in (0, 1)]),
    )

    def loss(*given):
        return ours(*given).square().sum()

    first = torch.func.grad(loss, argnums=(0, 1, 2))(*tensors)
    second = torch.func.grad(lambda *g: theirs(*g).square().sum(), argnums=(0, 1, 2))(*tensors)
    torch.testing.assert_close(first, second)


def test_transforms_of_packed_sequences(make_scan, scan_oracle):
    scan = make_scan("diagonal", 1, 11, 3, sequences=3)
    cu = torch.tensor([0, 4, 4, 11])
    tensors = tuple(t.detach() for t in scan.tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    torch.testing.assert_close(
        torch.func.jvp(lambda *g: linear_scan(*g, cu_seqlens=cu), tensors, tangents),
        torch.func.jvp(lambda *g: scan_oracle(*g, bounds=[0, 4, 4, 11]), tensors, tangents),
    )


def test_forward_differentiation(make_scan, scan_oracle, structure):
    """Which goes on where gradients are off."""
    scan = make_scan(structure, 2, 9, 3)
    tensors = tuple(t.detach() for t in scan.tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, tangents, strict=True)]
        _, tangent = forward_ad.unpack_dual(linear_scan(*duals))
    torch.testing.assert_close(tangent, torch.func.jvp(scan_oracle, tensors, tangents)[1])


def test_compiled_loops_are_refused_under_transforms(make_scan):
    scan = make_scan("diagonal", 1, 3, 2)
    tensors = tuple(t.detach() for t in scan.tensors)
    with pytest.raises(ValueError, match=r"under torch\.func and in forward.*got 'numba'"):
        torch.func.jvp(lambda *g: linear_scan(*g, backend="numba"), tensors, tensors)


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize("of", [0, 1, 2])
def test_a_gradient_of_a_gradient_is_refused(make_scan, of, operator):
    """Also one that is asked for by name, where torch drops what leads nowhere."""
    scan = make_scan("diagonal", 1, 3, 2)
    if operator:
        states = op.linear_scan_op(*scan.tensors, None, False, "auto")
    else:
        states = linear_scan(*scan.tensors)
    (grad,) = torch.autograd.grad(states.square().sum(), scan.b, create_graph=True)
    refusal = r"differentiated once.*use the transforms of torch\.func|no autograd formula"
    with pytest.raises(RuntimeError, match=refusal):
        torch.autograd.grad(grad.square().sum(), scan.tensors[of])


def test_autocast_takes_half_precision_as_float32(make_scan):
    scan = make_scan("diagonal", 2, 9, 3).to(dtype=torch.float32)
    a, b = scan.a.detach(), scan.b.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_scan(a, b)
    torch.testing.assert_close(got, linear_scan(a, b.float()), rtol=0, atol=0)


def test_fakes_and_meta_tensors_have_shapes(make_scan, structure):
    scan = make_scan(structure, 2, 9, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t.detach()) for t in scan.tensors]
        assert linear_scan(*fakes).shape == scan.b.shape
    meta = [t.detach().to("meta").requires_grad_() for t in scan.tensors]
    states = linear_scan(*meta)
    assert states.shape == scan.b.shape
    grads = torch.autograd.grad(states.sum(), meta)
    assert [g.shape for g in grads] == [t.shape for t in meta]


def test_parameters_and_inference_tensors(make_scan):
    scan = make_scan("diagonal", 2, 9, 3)
    plain = linear_scan(*scan.tensors)
    parameter = torch.nn.Parameter(scan.a.detach())
    torch.testing.assert_close(linear_scan(copy.deepcopy(parameter), scan.b, scan.initial), plain)
    with torch.inference_mode():
        torch.testing.assert_close(linear_scan(*scan.tensors), plain.detach())


@pytest.fixture
def elsewhere():
    """New tensors are made on another device than the ones that are given."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_the_default_device_does_not_matter(make_scan, structure, backend, request):
    cu = torch.tensor([0, 4, 9])
    scan = make_scan(structure, 1, 9, 3, sequences=2)
    request.getfixturevalue("elsewhere")
    for initial in (scan.initial, None):
        states = linear_scan(scan.a, scan.b, initial, cu_seqlens=cu, backend=backend)
        (grad,) = torch.autograd.grad(states.sum(), scan.a)
        assert states.device == grad.device == cu.device
