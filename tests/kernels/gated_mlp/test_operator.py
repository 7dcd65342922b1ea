"""The feed-forward as a citizen of torch: operators, gradients, compilers, autocast, memory."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.kernels.gated_mlp import ACTIVATIONS, composite, gated_activation, gated_mlp, op

KINDS = pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])


@pytest.mark.opcheck
@KINDS
@pytest.mark.parametrize(
    ("activation", "dtype"), [("silu", torch.float32), ("gelu_tanh", torch.bfloat16)]
)
def test_opcheck(make_case, gated, activation, dtype):
    width = 6 * (1 + gated)
    rest = (activation, gated)
    projected = torch.randn(5, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    bias = torch.randn(4, dtype=dtype, requires_grad=True)
    torch.library.opcheck(op.gated_activation_op, (projected, *rest, "reference"))
    for given in (bias, None):
        torch.library.opcheck(op.gated_output_op, (projected, weight, given, *rest, "reference"))
    for want in (True, False):
        torch.library.opcheck(
            op.gated_activation_backward_op,
            (projected.detach(), torch.randn(5, 6, dtype=dtype), *rest, want, "reference"),
        )


@pytest.mark.opcheck
@KINDS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_and_gradients_of_gradients(make_case, activation, gated):
    case = make_case(batch=(3,), dim=2, hidden=2, out=2, gated=gated).to(dtype=torch.float64)

    def function(*given):
        return gated_mlp(*given, activation=activation, gated=gated, backend="reference")

    assert torch.autograd.gradcheck(function, case.leaves)
    assert torch.autograd.gradgradcheck(function, case.leaves)


@pytest.mark.opcheck
def test_gradients_of_gradients_of_the_activation():
    projected = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for backend in ("reference", "auto"):
        function = partial(gated_activation, backend=backend)
        assert torch.autograd.gradgradcheck(function, projected)


@pytest.mark.parametrize("of", ["x", "weight_in", "weight_out", "bias_in", "bias_out"])
def test_gradients_that_are_wanted_alone(make_case, of):
    """Each alone, and again as a part of a graph that can be differentiated."""
    case = make_case().to(dtype=torch.float64)
    leaf = getattr(case, of)
    for other in case.leaves:
        other.requires_grad_(other is leaf)
    expected = torch.autograd.grad(case.truth("silu", True).sum(), leaf)
    for create_graph in (False, True):
        y = gated_mlp(*case.given, backend="reference")
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), leaf, create_graph=create_graph), expected
        )


def kept_by(function, *known) -> list[int]:
    """Elements of the storages, beside those of `known`, that autograd keeps of a call."""
    given = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function()
    assert y.requires_grad
    return sorted(elements for place, elements in kept.items() if place not in given)


@KINDS
def test_only_x_and_the_projection_are_kept(make_case, gated, monkeypatch):
    case = make_case(batch=(2, 31), dim=6, hidden=11, out=5, gated=gated)
    tokens, width = 62, 11 * (1 + gated)

    def ours(backend="reference"):
        return gated_mlp(*case.given, gated=gated, backend=backend)

    def plain():
        z = functional.linear(case.x, case.weight_in, case.bias_in)
        if not gated:
            return functional.linear(functional.silu(z), case.weight_out, case.bias_out)
        gate, up = z.chunk(2, -1)
        return functional.linear(functional.silu(gate) * up, case.weight_out, case.bias_out)

    assert kept_by(ours, *case.leaves) == [tokens * width]
    assert tokens * 6 in kept_by(ours, *case.leaves[1:])  # x
    # torch keeps what lies between, too: the activated gate, and its product with up.
    between = [tokens * 11] * (1 + gated) + [tokens * width]
    assert kept_by(plain, *case.leaves) == between
    # And so does "auto" on a CPU where there is little.
    assert kept_by(lambda: ours("auto"), *case.leaves) == between
    monkeypatch.setattr(composite, "LITTLE", tokens * width - 1)
    assert kept_by(lambda: ours("auto"), *case.leaves) == [tokens * width]


def test_the_activation_keeps_its_projection():
    projected = torch.randn(4, 6, requires_grad=True)

    def ours():
        return gated_activation(projected, backend="reference")

    assert kept_by(ours) == [24]
    assert kept_by(ours, projected) == []


class Names(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_compilers_fakes_and_subclasses_get_the_operator_and_plain_tensors_do_not(make_case):
    case = make_case()

    class Marked(torch.Tensor):
        pass

    with Names() as names:
        gated_mlp(*case.given)
    assert not any("ropewalk" in name for name in names.seen)
    with Names() as names:
        gated_mlp(case.x.as_subclass(Marked), *case.given[1:])
    assert "ropewalk.gated_output.default" in names.seen
    with FakeTensorMode() as mode, Names() as names:
        y = gated_mlp(*map(mode.from_tensor, case.given))
        gated_activation(y[..., :2])
    assert "ropewalk.gated_output.default" in names.seen
    assert "ropewalk.gated_activation.default" in names.seen


@pytest.mark.parametrize(
    ("gated", "compiler"), [(True, "aot_eager"), (False, "aot_eager"), (True, "inductor")]
)
def test_compiles_as_a_whole(make_case, gated, compiler):
    case = make_case(gated=gated)

    def function(*given):
        return gated_mlp(*given, activation="gelu", gated=gated)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    found, expected = compiled(*case.given), function(*case.given)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, case.leaves, upstream),
        torch.autograd.grad(expected, case.leaves, upstream),
    )


def test_a_compiler_keeps_only_the_projection(make_case):
    case = make_case(batch=(62,), hidden=11)
    torch.compiler.reset()
    compiled = torch.compile(gated_mlp, fullgraph=True, backend="aot_eager")
    compiled(*case.given)
    assert kept_by(lambda: compiled(*case.given), *case.leaves) == [62 * 22]


def test_compiles_for_any_number_of_tokens(make_case):
    case = make_case()
    torch.compiler.reset()
    compiled = torch.compile(gated_mlp, fullgraph=True, backend="aot_eager", dynamic=True)
    activation = torch.compile(gated_activation, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (6, 9, 20):
        x, projected = torch.randn(2, tokens, 6), torch.randn(2, tokens, 8)
        torch.testing.assert_close(compiled(x, *case.given[1:]), gated_mlp(x, *case.given[1:]))
        torch.testing.assert_close(activation(projected), gated_activation(projected))


def test_exports_for_any_number_of_tokens(make_case):
    case = make_case()
    weights = [t.detach() for t in case.given[1:]]

    class FeedForward(torch.nn.Module):
        def forward(self, x):
            return gated_mlp(x, *weights)

    tokens = torch.export.Dim("tokens", min=2, max=100)
    exported = torch.export.export(
        FeedForward(), (torch.randn(2, 5, 6),), dynamic_shapes=({1: tokens},)
    )
    x = torch.randn(2, 17, 6)
    torch.testing.assert_close(exported.module()(x), gated_mlp(x, *case.given[1:]))


@KINDS
def test_fakes_and_meta_have_shapes_and_strides(make_case, gated):
    case = make_case(gated=gated)
    real = gated_mlp(*case.given, gated=gated)
    with FakeTensorMode() as mode:
        fake = gated_mlp(*map(mode.from_tensor, case.given), gated=gated)
    meta = gated_mlp(*(t.detach().to("meta") for t in case.given), gated=gated)
    for found in (fake, meta):
        assert found.shape == real.shape
        assert found.stride() == real.stride()
        assert found.dtype == real.dtype


def test_autocast(make_case):
    case = make_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gated_mlp(*case.given)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    for leaf in case.leaves:
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
    half = case.to(dtype=torch.bfloat16)
    torch.testing.assert_close(found, gated_mlp(*half.given), rtol=0, atol=0)
    # A backward under autocast gives what it gives without.
    wide = case.to()
    loss = gated_mlp(*wide.given, backend="reference").sum()
    expected = torch.autograd.grad(loss, wide.weight_out, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(torch.autograd.grad(loss, wide.weight_out), expected)


@KINDS
def test_transforms_and_forward_differentiation(make_case, gated):
    case = make_case(gated=gated).to(dtype=torch.float64)
    x, *rest = (t.detach() for t in case.given)
    tangent = torch.randn_like(x)

    def function(x):
        return gated_mlp(x, *rest, gated=gated)

    y, moved, *_ = torch.func.jvp(function, (x,), (tangent,))
    torch.testing.assert_close(y, function(x))
    (back,) = torch.func.vjp(function, x)[1](torch.ones_like(y))
    torch.testing.assert_close((back * tangent).sum(), moved.sum())
    torch.testing.assert_close(torch.func.vmap(function)(x), y)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(function(dual))
    torch.testing.assert_close(found.tangent, moved)
    projected = torch.randn(3, 4, dtype=torch.float64)
    _, moved, *_ = torch.func.jvp(gated_activation, (projected,), (projected,))
    assert moved.abs().max() > 0


def test_kernels_have_no_transforms():
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or 'reference' under"):
        torch.func.vmap(lambda z: gated_activation(z, backend="triton"))(torch.randn(3, 4))


def test_a_second_derivative_of_a_compiled_one_is_refused(make_case):
    """As torch refuses it for all that is compiled."""
    case = make_case()
    torch.compiler.reset()
    y = torch.compile(gated_mlp, fullgraph=True, backend="aot_eager")(*case.given)
    (grad,) = torch.autograd.grad(y.square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


def test_nothing_is_left_unwritten(make_case, uninitialised):
    for gated in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            case = make_case(batch=(11,), gated=gated).to(dtype=dtype)
            y = gated_mlp(*case.given, gated=gated, backend="reference")
            assert y.isfinite().all()
            for grad in torch.autograd.grad(y.sum(), case.leaves):
                assert grad.isfinite().all()


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_weight_that_is_made_of_the_bias(create_graph):
    """What a weight was made of gets its gradient once, by whichever backward."""
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    x, weight_in, factor = (torch.randn(*s, dtype=torch.float64) for s in ((3, 5), (6, 5), (4, 3)))
    weight = bias.sin()[:, None] * factor
    y = gated_mlp(x, weight_in, weight, None, bias, backend="reference")
    gate, up = (x @ weight_in.mT).chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(gate) * up) @ weight.mT + bias
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, bias, upstream, create_graph=create_graph, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, bias, upstream))
