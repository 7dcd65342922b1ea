"""The scan as a citizen of torch: operator checks, gradients, compilers, transforms."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ropewalk.kernels.newton_scan import newton_scan, op


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(make_recurrence, cell, dtype, packed, backend):
    cu = torch.tensor([0, 2, 2, 7], dtype=torch.int32) if packed else None
    r = make_recurrence(cell, 1 if packed else 2, 7, 3, sequences=3 if packed else None).to(
        dtype=dtype
    )
    for initial, algorithm in ((r.initial, "newton"), (None, "sequential")):
        rest = (cell, algorithm, 4, 1e-6, 3, backend)
        torch.library.opcheck(op.newton_scan_op, (r.inputs, r.weights, initial, cu, *rest))
        x, w, h = (None if t is None else t.detach() for t in (r.inputs, r.weights, initial))
        states, _, _ = op.newton_scan_op(x, w, h, cu, *rest)
        for needs in ([True, True, initial is not None], [True, False, False]):
            torch.library.opcheck(
                op.newton_scan_backward_op,
                (x, w, h, cu, states, torch.randn_like(states), needs, cell, algorithm, backend),
            )


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("algorithm", ["newton", "sequential"])
def test_gradcheck(make_recurrence, cell, algorithm, backend):
    r = make_recurrence(cell, 2, 5, 2)

    def function(*tensors):
        return newton_scan(*tensors, cell=cell, algorithm=algorithm, backend=backend).states

    assert torch.autograd.gradcheck(function, r.tensors)


def test_the_last_state_is_differentiable(make_recurrence, cell):
    """Two halves joined by it are the whole."""
    r = make_recurrence(cell, 2, 40, 3)
    whole = newton_scan(*r.tensors, cell=cell).states
    first = newton_scan(r.inputs[:, :17], r.weights, r.initial, cell=cell).states
    second = newton_scan(r.inputs[:, 17:], r.weights, first[:, -1], cell=cell).states
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    upstream = torch.randn_like(second)
    torch.testing.assert_close(
        torch.autograd.grad(second, r.tensors, upstream),
        torch.autograd.grad(whole[:, 17:], r.tensors, upstream),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_whole(make_recurrence, cell, packed):
    cu = torch.tensor([0, 4, 9]) if packed else None
    r = make_recurrence(cell, 1 if packed else 2, 9, 3, sequences=2 if packed else None).to(
        dtype=torch.float32
    )

    def function(*tensors):
        states, iterations, residual = newton_scan(
            *tensors, cell=cell, cu_seqlens=cu, algorithm="newton"
        )
        return states * 2, iterations, residual

    wanted = function(*r.tensors)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*r.tensors)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted[0])
    torch.testing.assert_close(
        torch.autograd.grad(got[0], r.tensors, upstream),
        torch.autograd.grad(wanted[0], r.tensors, upstream),
    )


def test_what_is_reported_has_no_gradient(make_recurrence, cell):
    r = make_recurrence(cell, 2, 9, 3)
    found = newton_scan(*r.tensors, cell=cell)
    assert found.states.requires_grad
    assert not found.residual.requires_grad
    assert not found.iterations.requires_grad


def test_operator_and_eager_agree(make_recurrence, cell):
    r = make_recurrence(cell, 2, 9, 3)
    eager = newton_scan(*r.tensors, cell=cell, algorithm="newton")
    through = op.newton_scan_op(
        *r.tensors, None, cell, "newton", None, None, None, "auto"
    )  # fmt: skip
    torch.testing.assert_close(through, tuple(eager), rtol=0, atol=0)


def test_transforms_of_torch_func(make_recurrence, recurrence_oracle, cell):
    for bounds in (None, [0, 4, 4, 11]):
        cu = None if bounds is None else torch.tensor(bounds)
        r = make_recurrence(
            cell, 2 if bounds is None else 1, 11, 3, sequences=None if bounds is None else 3
        )
        tensors = tuple(t.detach() for t in r.tensors)
        tangents = tuple(torch.randn_like(t) for t in tensors)

        def ours(*given, cu=cu):
            return newton_scan(*given, cell=cell, cu_seqlens=cu).states

        def theirs(*given, bounds=bounds, r=r):
            return recurrence_oracle(type(r)(cell, *given), bounds=bounds)

        torch.testing.assert_close(
            torch.func.jvp(ours, tensors, tangents), torch.func.jvp(theirs, tensors, tangents)
        )


def test_forward_differentiation(make_recurrence, cell):
    """Which goes on where gradients are off."""
    tensors = tuple(t.detach() for t in make_recurrence(cell, 2, 9, 3).tensors)
    tangents = tuple(torch.randn_like(t) for t in tensors)

    def states(*given):
        return newton_scan(*given, cell=cell).states

    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, tangents, strict=True)]
        _, tangent = forward_ad.unpack_dual(states(*duals))
    torch.testing.assert_close(tangent, torch.func.jvp(states, tensors, tangents)[1])


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_mixed_dtypes(make_recurrence, cell, dtype, backend):
    r = make_recurrence(cell, 2, 9, 3).to(dtype=torch.bfloat16)
    inputs = r.inputs.detach().to(dtype)
    wanted = newton_scan(
        inputs, r.weights.float(), r.initial.float(), cell=cell, backend=backend
    ).states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = newton_scan(inputs, r.weights, r.initial, cell=cell, backend=backend).states
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert torch.autograd.grad(got.sum(), r.weights)[0].dtype == torch.bfloat16


def test_compiled_loops_are_refused_under_transforms(make_recurrence):
    tensors = tuple(t.detach() for t in make_recurrence("gru", 1, 3, 2).tensors)
    with pytest.raises(ValueError, match=r"under torch\.func and in forward.*got 'numba'"):
        torch.func.jvp(
            lambda *g: newton_scan(*g, cell="gru", backend="numba").states, tensors, tensors
        )


def test_fakes_and_meta_tensors_have_shapes(make_recurrence, cell):
    r = make_recurrence(cell, 2, 9, 3)
    plain = newton_scan(*r.tensors, cell=cell)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t.detach()) for t in r.tensors]
        fake = newton_scan(*fakes, cell=cell)
    meta = [t.detach().to("meta").requires_grad_() for t in r.tensors]
    far = newton_scan(*meta, cell=cell)
    for other in (fake, far):
        assert [t.shape for t in other] == [t.shape for t in plain]
        assert [t.dtype for t in other] == [t.dtype for t in plain]
    grads = torch.autograd.grad(far.states.sum(), meta)
    assert [g.shape for g in grads] == [t.shape for t in meta]


def test_inference_mode(make_recurrence, cell):
    r = make_recurrence(cell, 2, 9, 3)
    plain = newton_scan(*r.tensors, cell=cell).states
    with torch.inference_mode():
        torch.testing.assert_close(newton_scan(*r.tensors, cell=cell).states, plain.detach())


@pytest.fixture
def elsewhere():
    """New tensors are made on another device, and in another dtype, than the ones given."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("algorithm", ["newton", "sequential"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_defaults_of_torch_do_not_matter(
    make_recurrence, cell, backend, algorithm, packed, request
):
    cu = torch.tensor([0, 4, 9]) if packed else None
    r = make_recurrence(cell, 1, 9, 3, initial=False).to(dtype=torch.float32)
    request.getfixturevalue("elsewhere")
    found = newton_scan(*r.tensors, cell=cell, cu_seqlens=cu, algorithm=algorithm, backend=backend)
    grads = torch.autograd.grad(found.states.sum(), r.tensors)
    assert [t.dtype for t in found] == [torch.float32, torch.int32, torch.float32]
    assert {t.device.type for t in (*found, *grads)} == {"cpu"}


@pytest.mark.parametrize("of", [0, 1, 2])
def test_a_gradient_of_a_gradient_is_refused(make_recurrence, cell, of):
    """Also one that is asked for by name, where torch drops what leads nowhere."""
    r = make_recurrence(cell, 2, 5, 3)
    states = newton_scan(*r.tensors, cell=cell).states
    (grad,) = torch.autograd.grad(states.square().sum(), r.inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once.*torch\.func"):
        torch.autograd.grad(grad.square().sum(), r.tensors[of])
