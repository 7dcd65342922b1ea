"""The chain as a citizen of torch: operator checks, gradients, compilers, transforms, memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.kernels.adaptive_norm import NORMS, adaptive_norm, gated_adaptive_norm, op
from ropewalk.kernels.adaptive_norm.problem import Needs

FORMS = {
    "layer": {"norm": "layer"},
    "rms": {"norm": "rms", "affine": "weight"},
    "affine": {"norm": "layer", "affine": "weight bias"},
    "no branch": {"branch": False},
    "no gate": {"modulation": "shift scale"},
    "no norm": {"norm": None},
}


def arguments(case):
    c = case
    return (
        c.x, c.branch, c.gate, c.shift, c.scale, c.weight, c.bias, c.cu_seqlens, c.norm, c.eps,
        "reference",
    )  # fmt: skip


@pytest.mark.opcheck
@pytest.mark.parametrize(
    ("form", "dtype", "packed"),
    [
        ("affine", torch.float32, True),
        ("affine", torch.bfloat16, False),
        ("rms", torch.bfloat16, True),
        ("no branch", torch.float32, False),
        ("no gate", torch.float32, False),
        ("no norm", torch.bfloat16, False),
    ],
    ids=str,
)
def test_opcheck(form, dtype, packed, make_case):
    size, lengths = ((1, 5, 4), (2, 0, 3)) if packed else ((2, 5, 4), None)
    case = make_case(size, lengths, **FORMS[form]).to(dtype)
    given = arguments(case)
    torch.library.opcheck(op.adaptive_norm_op, given)
    given = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in given)
    residual, _, mean, rstd = op.adaptive_norm_op(*given)
    seen = given[0] if case.branch is None else residual
    upstream = [
        torch.randn_like(case.x) if wanted else None
        for wanted in (case.branch is not None, case.norm is not None)
    ]
    every = Needs(*(getattr(case, name) is not None for name in Needs._fields))
    one = Needs(*(name == case.names[-1] for name in Needs._fields))
    for needs in (every, one):
        torch.library.opcheck(
            op.adaptive_norm_backward_op,
            (seen, *given[1:8], mean, rstd, *upstream, list(needs), *given[8:]),
        )


@pytest.mark.opcheck
@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize(("norm", "dim"), [("rms", 4), ("layer", 4), ("layer", 300)])
def test_results_are_dense_whatever_was_given(norm, dim, branch, make_case):
    """As fake tensors say: a compiler trusts their strides."""

    def batch_last(x):
        return x.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    case = make_case((2, 5, dim), norm=norm, branch=branch)
    x, added, *rest = arguments(case)
    checks = ("test_schema", "test_faketensor")
    given = (batch_last(x), batch_last(added) if branch else None, *rest)
    torch.library.opcheck(op.adaptive_norm_op, given, test_utils=checks)
    residual, _, mean, rstd = op.adaptive_norm_op(*given)
    upstream = [batch_last(torch.randn_like(x)) for _ in range(1 + branch)]
    upstream = upstream if branch else [None, *upstream]
    every = [getattr(case, name) is not None for name in Needs._fields]
    for seen in (residual if branch else x, given[0]):
        torch.library.opcheck(
            op.adaptive_norm_backward_op,
            (seen, *given[1:8], mean, rstd, *upstream, every, *given[8:]),
            test_utils=checks,
        )


@pytest.mark.opcheck
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, packed, make_case):
    """Derivatives, and derivatives of derivatives."""
    size, lengths = ((1, 3, 3), (2, 0, 1)) if packed else ((2, 1, 3), None)
    case = make_case(size, lengths, **FORMS[form]).to(torch.float64)

    def function(*leaves):
        return tuple(
            type(case)(**{**vars(case), **dict(zip(case.names, leaves, strict=True))}).run()
        )

    assert torch.autograd.gradcheck(function, case.leaves)
    assert torch.autograd.gradgradcheck(function, case.leaves)


def test_derivatives_of_derivatives_where_a_result_is_not_used(make_case):
    case = make_case((2, 3, 4)).to(torch.float64)
    for index in (0, 1):

        def function(*leaves, index=index):
            given = dict(zip(case.names, leaves, strict=True))
            return type(case)(**{**vars(case), **given}).run()[index]

        assert torch.autograd.gradgradcheck(function, case.leaves)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_for_the_backward(form, make_case):
    """Of the streams' size: the residual, and the branch where a gate's gradient needs it."""
    batch, tokens, dim = size = (4, 32, 64)
    case = make_case(size, **FORMS[form]).to(torch.float32)

    def kept():
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            case.run()
        return sizes

    found = kept()
    streams = [n for n in found if n == batch * tokens * dim]
    gated = case.gate is not None
    normed = case.norm is not None
    assert len(streams) == normed + gated
    statistics = batch * tokens * {"layer": 2, "rms": 1, None: 0}[case.norm]
    rows = sum(n in ("gate", "shift", "scale") for n in case.names) * batch * dim
    own = sum(n in ("weight", "bias") for n in case.names) * dim
    assert sum(found) == sum(streams) + statistics + rows + own
    if gated:
        case.gate.requires_grad_(False)
        assert len([n for n in kept() if n == batch * tokens * dim]) == normed


def test_compilers_fakes_and_subclasses_get_the_operator_and_plain_tensors_do_not(make_case):
    case = make_case((2, 3, 4))

    class Marked(torch.Tensor):
        pass

    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    given = (case.branch, case.gate, case.shift, case.scale)
    with Names():
        gated_adaptive_norm(case.x, *given)
    assert not any("ropewalk" in name for name in seen)
    with Names():
        gated_adaptive_norm(case.x.as_subclass(Marked), *given)
    assert "ropewalk.adaptive_norm.default" in seen
    with FakeTensorMode() as mode, Names():
        seen.clear()
        gated_adaptive_norm(*map(mode.from_tensor, (case.x, *given)))
    assert "ropewalk.adaptive_norm.default" in seen


@pytest.mark.parametrize("form", ["layer", "rms", "no norm"])
@pytest.mark.parametrize("packed", [False, True])
def test_compiles_as_a_whole(form, packed, make_case, with_gradients):
    size, lengths = ((1, 6, 8), (2, 0, 4)) if packed else ((3, 6, 8), None)
    case = make_case(size, lengths, **FORMS[form]).to(torch.float32)
    expected = with_gradients(lambda c: c.run(), case)
    torch.compiler.reset()
    compiled = torch.compile(lambda c: c.run(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, case), expected)


def test_a_block_compiles_for_any_number_of_tokens():
    """Chunks of one product are read where they lie, in a graph of one piece."""
    to_rows = torch.nn.Linear(4, 3 * 8)

    def block(x, branch, condition):
        shift, scale, gate = to_rows(condition).chunk(3, dim=1)
        residual, y = gated_adaptive_norm(x, branch, gate, shift, scale)
        return residual + torch.tanh(y)

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, tokens in ((2, 6), (3, 9), (2, 20)):
        given = [torch.randn(batch, tokens, 8) for _ in range(2)] + [torch.randn(batch, 4)]
        found, expected = compiled(*given), block(*given)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), to_rows.weight) for y in (found, expected))
        )


def test_exports_for_any_number_of_tokens():
    class Block(torch.nn.Module):
        def forward(self, x, branch, rows):
            return gated_adaptive_norm(x, branch, *rows.chunk(3, dim=1))

    given = torch.randn(2, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 24)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    stream = {0: batch, 1: tokens}
    exported = torch.export.export(
        Block(), given, dynamic_shapes=(stream, stream, {0: batch})
    ).module()
    other = torch.randn(5, 11, 8), torch.randn(5, 11, 8), torch.randn(5, 24)
    torch.testing.assert_close(exported(*other), Block()(*other))


@pytest.mark.parametrize("form", FORMS)
def test_fakes_and_meta_tensors_have_shapes(form, make_case):
    case = make_case((2, 5, 4), **FORMS[form]).to(torch.bfloat16, rows=torch.float32)
    real = case.run()
    given = {name: getattr(case, name).detach() for name in case.names}
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in given.items()}
        fake = type(case)(**{**vars(case), **fakes}).run()
    far = case.to(torch.bfloat16, "meta", rows=torch.float32)
    results = far.run()
    for found in (fake, results):
        for value, expected in zip(found, real, strict=True):
            assert value.shape == expected.shape
            assert value.stride() == expected.stride()
            assert value.dtype == expected.dtype
    gradients = torch.autograd.grad([y.sum() for y in results], far.leaves)
    assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in far.leaves]


def test_autocast(make_case):
    """The streams are cast; rows in float32 stay so."""
    case = make_case((2, 5, 8), affine="weight").to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.run()
    assert [y.dtype for y in found] == [torch.bfloat16] * 2
    same = case.to(torch.bfloat16, rows=torch.float32)
    torch.testing.assert_close(found, same.run(), rtol=0, atol=0)
    sum(y.float().sum() for y in found).backward()
    assert [leaf.grad.dtype for leaf in case.leaves] == [torch.float32] * len(case.leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.to(torch.float64).run()[0].dtype == torch.float64
        mixed = make_case((2, 5, 8)).to(torch.float32, rows=torch.float16).run()
    assert mixed[0].dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_transforms_of_torch_func(form, make_case, chain_oracle):
    for lengths in (None, (2, 0, 3)):
        size = (2, 5, 4) if lengths is None else (1, 5, 4)
        case = make_case(size, lengths, **FORMS[form])
        tangents = tuple(torch.randn_like(leaf) for leaf in case.leaves)

        def of(function, case=case):
            def wrapped(*leaves):
                given = dict(zip(case.names, leaves, strict=True))
                return tuple(function(type(case)(**{**vars(case), **given})))

            return wrapped

        pair = [
            torch.func.jvp(of(function), tuple(case.leaves), tangents)
            for function in (lambda c: c.run(), chain_oracle)
        ]
        torch.testing.assert_close(*pair)
        with torch.no_grad(), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(*both) for both in zip(case.leaves, tangents, strict=True)
            ]
            found = [forward_ad.unpack_dual(y).tangent for y in of(lambda c: c.run())(*duals)]
        torch.testing.assert_close(tuple(found), pair[1][1])


def test_gradients_by_sample():
    """torch.func's grad under vmap: what differentially private training takes."""
    x, shift, scale = torch.randn(3, 5, 4), torch.randn(3, 4), torch.randn(3, 4)

    def loss(x, shift, scale):
        return adaptive_norm(x[None], shift[None], scale[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(1, 2)))(x, shift, scale)
    rows = [row.requires_grad_() for row in (shift, scale)]
    expected = torch.autograd.grad(adaptive_norm(x, *rows).square().sum(), rows)
    torch.testing.assert_close(found, expected)


def test_kernels_are_refused_under_transforms():
    x = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=r"under torch\.func and in forward.*got 'triton'"):
        torch.func.grad(lambda x: adaptive_norm(x, backend="triton").sum())(x)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_left_unwritten(norm, make_case, with_gradients, uninitialised):
    for size, lengths in (((3, 5, 7), None), ((1, 9, 7), (4, 0, 5)), ((1, 0, 7), (0, 0))):
        case = make_case(size, lengths, norm=norm, affine="weight bias").to(torch.bfloat16)
        for value in with_gradients(lambda c: c.run(), case).values():
            assert value.isfinite().all()


def test_inference_mode(make_case):
    case = make_case((2, 5, 4))
    plain = case.run()
    with torch.inference_mode():
        torch.testing.assert_close(case.run(), plain)


@pytest.fixture
def elsewhere():
    """New tensors are made on another device, and in another dtype, than the ones given."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("packed", [False, True])
def test_defaults_of_torch_do_not_matter(packed, make_case, request):
    size, lengths = ((1, 6, 8), (2, 4)) if packed else ((3, 6, 8), None)
    case = make_case(size, lengths, affine="weight bias").to(torch.float32)
    request.getfixturevalue("elsewhere")
    found = case.run()
    found += torch.autograd.grad([y.sum() for y in found], case.leaves)
    assert {(y.dtype, y.device.type) for y in found} == {(torch.float32, "cpu")}


def test_a_transform_inside_of_a_compiler(make_case):
    case = make_case((2, 5, 4)).to(torch.float32)

    def loss(x):
        residual, y = gated_adaptive_norm(x, case.branch, case.gate, case.shift, case.scale)
        return (residual * y).sum()

    x = case.x.detach()
    torch.compiler.reset()
    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.func.grad(loss)(x))
