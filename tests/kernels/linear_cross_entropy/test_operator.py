"""The loss as a citizen of torch: operator checks, compilers, autocast, fake and meta tensors."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ropewalk.kernels.linear_cross_entropy import at_once, linear_cross_entropy, op, targets
from ropewalk.kernels.linear_cross_entropy.problem import ELSEWHERE, IGNORED

CONSTANTS = (0.7, 3.0)


def arguments(problem, *, exact, with_bias, with_sum, dtype=torch.float32, grad=True):
    """Of the statistics operator."""
    hidden, weight, bias, _ = problem(9, dim=5, vocabulary=13, dtype=dtype)
    codes = torch.tensor([0, 12, ELSEWHERE, IGNORED, 3, 3, IGNORED, 7, ELSEWHERE])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sums = torch.linspace(0.5, 1.5, 13, dtype=wide) if with_sum else None
    leaves = [x.detach().requires_grad_(grad) for x in (hidden, weight, bias)]
    bias = leaves[2] if with_bias else None
    if not exact:  # the weights in columns, as a view of a transposed matrix has them
        leaves[1] = leaves[1].detach().T.contiguous().T.requires_grad_(grad)
    return (*leaves[:2], codes, bias, sums, *CONSTANTS, exact, "reference")


@pytest.mark.opcheck
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_sum", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(problem, exact, with_bias, with_sum, dtype):
    options = {"exact": exact, "with_bias": with_bias, "with_sum": with_sum, "dtype": dtype}
    torch.library.opcheck(op.vocabulary_statistics_op, arguments(problem, **options))
    given = arguments(problem, **options, grad=False)
    logsumexp, _, _, live = op.vocabulary_statistics_op(*given)
    upstream = (torch.randn(9), torch.randn(9), torch.randn(9 if with_sum else 0))
    for needs in ([True, True, with_bias], [True, False, False], [False, True, False]):
        torch.library.opcheck(
            op.vocabulary_gradients_op,
            (*given[:5], logsumexp, live, *upstream, needs, *given[5:]),
        )


@pytest.mark.opcheck
def test_opcheck_of_the_targets():
    given = torch.tensor([[3, -100, 0], [11, 5, -100]], dtype=torch.int32)
    torch.library.opcheck(targets.encode_targets, (given, -100, 12, 2, 6))
    codes = targets.encode_targets(given, -100, 12, 2, 6)
    assert codes.tolist() == [[1, IGNORED, ELSEWHERE], [ELSEWHERE, 3, IGNORED]]


@pytest.mark.opcheck
@pytest.mark.parametrize("with_sum", [True, False])
def test_gradcheck(problem, with_sum):
    given = arguments(problem, exact=True, with_bias=True, with_sum=with_sum, dtype=torch.float64)

    def function(hidden, weight, bias):
        found = op.vocabulary_statistics_op(hidden, weight, given[2], bias, *given[4:])
        return found[:3] if with_sum else found[:2]

    torch.autograd.gradcheck(function, (given[0], given[1], given[3]))


@pytest.mark.opcheck
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}])
@pytest.mark.parametrize("columns", [False, True])
def test_opcheck_of_the_loss_at_once(problem, monkeypatch, options, columns):
    given = []
    operator = at_once.vocabulary_loss_op
    monkeypatch.setattr(at_once, "vocabulary_loss_op", lambda *x: given.append(x) or operator(*x))
    hidden, weight, bias, goals = problem(9, dim=5, vocabulary=13)
    linear_cross_entropy(hidden, weight, goals, bias=bias, softcap=3.0, **options)
    leaves = [x.detach() for x in given[0][:3]]
    if columns:
        leaves = [x.T.contiguous().T if x.ndim == 2 else x for x in leaves]
    leaves = [x.requires_grad_() for x in leaves]
    torch.library.opcheck(operator, (*leaves, *given[0][3:]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_backward_cannot_be_differentiated(problem, reduction):
    hidden, weight, _, goals = problem(3)
    loss = linear_cross_entropy(hidden, weight, goals, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"vocabulary_gradients|differentiated once"):
        torch.autograd.grad(loss, hidden, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("exact", [True, False])
def test_compiles_as_one_graph_for_changing_lengths(problem, backend, exact):
    torch.compiler.reset()

    def step(hidden, weight, bias, goals):
        loss, logsumexp = linear_cross_entropy(
            hidden * 2, weight, goals, bias=bias, shift=True, z_loss=0.1, softcap=5.0,
            return_logsumexp=True, exact=exact,
        )  # fmt: skip
        return loss + logsumexp.mean()

    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    for length in (5, 8, 13):
        hidden, weight, bias, goals = problem(2, length, dtype=torch.float32)
        results = []
        for function in (compiled, step):
            loss = function(hidden, weight, bias, goals)
            results.append((loss, *torch.autograd.grad(loss, (hidden, weight, bias))))
        torch.testing.assert_close(*results)


def test_a_compiled_step_with_label_smoothing_and_class_weights(problem):
    torch.compiler.reset()
    classes = torch.linspace(0.1, 1.0, 301)

    def step(hidden, weight, goals):
        return linear_cross_entropy(
            hidden, weight, goals, label_smoothing=0.1, weight_per_class=classes, reduction="none"
        ).square().mean()  # fmt: skip

    hidden, weight, _, goals = problem(4, 3, dtype=torch.float32)
    results = []
    for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        loss = function(hidden, weight, goals)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(*results)


def test_targets_out_of_range_raise_from_compiled_code(problem):
    torch.compiler.reset()
    hidden, weight, _, goals = problem(3)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="targets: expected indices from 0 to 300"):
        compiled(hidden, weight, goals.fill_(301))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_a_linear_layer_would(problem, dtype):
    hidden, weight, bias, goals = problem(30, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_cross_entropy(hidden, weight, goals, bias=bias)
    cast = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    expected = linear_cross_entropy(cast[0], cast[1], goals, bias=cast[2])
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    for got, want in zip(gradients, torch.autograd.grad(expected, cast), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want.float(), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fake_tensors_have_the_shapes_of_real_ones(problem, reduction):
    hidden, weight, _, goals = problem(2, 4, dtype=torch.bfloat16)
    options = {"reduction": reduction, "return_logsumexp": True, "shift": True}
    real = linear_cross_entropy(hidden, weight, goals, **options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = linear_cross_entropy(
            *map(mode.from_tensor, (hidden.detach(), weight.detach(), goals)), **options
        )
    meta = linear_cross_entropy(
        *(x.detach().to("meta") for x in (hidden, weight, goals)), **options
    )
    for one in (fake, meta):
        for got, want in zip(one, real, strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)


def test_importing_it_does_not_import_triton():
    code = "import sys, ropewalk.kernels.linear_cross_entropy; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_twice_through_one_graph(problem):
    hidden, weight, _, goals = problem(6)
    loss = linear_cross_entropy(hidden, weight, goals)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.zero_()  # as clipping does; the graph's own tensors are not these
    second = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(kept, list(second), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_of_the_backward_may_be_made(problem, reduction):
    hidden, weight, _, goals = problem(6)
    loss = linear_cross_entropy(hidden, weight, goals, reduction=reduction).sum()
    graph = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
    loss = linear_cross_entropy(hidden, weight, goals, reduction=reduction).sum()
    torch.testing.assert_close(graph, torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_with_matrices_in_columns(problem, reduction):
    torch.compiler.reset()
    hidden, weight, _, goals = problem(7, dtype=torch.float32)
    hidden, weight = (x.detach().T.contiguous().T.requires_grad_() for x in (hidden, weight))

    def step(hidden, weight):
        return linear_cross_entropy(hidden * 1.5, weight * 2, goals, reduction=reduction).sum()

    results = []
    for function in (torch.compile(step, fullgraph=True), step):
        loss = function(hidden, weight)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(*results)
