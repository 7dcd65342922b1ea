"""The merge as a citizen of torch: operator checks, gradients, compilers, autocast, fakes."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ropewalk.kernels import backends
from ropewalk.kernels.context_merge import (
    POOLINGS,
    backend,
    context_merge,
    custom_pooling,
    op,
    reference,
)
from ropewalk.kernels.interpreter import interpreted

PRIOR = torch.tensor([1.0, 2.0, 0.0, 0.5])


def leaves(case, dtype=torch.float64):
    prior = PRIOR.to(dtype).clone()
    return [x.detach().clone().requires_grad_() for x in (case.logits, case.unconditional, prior)]


def finite(log_probs):
    """What is no token has no gradient, and −∞ no difference quotient."""
    return log_probs.masked_fill(log_probs == -torch.inf, 0.0)


@pytest.mark.opcheck
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("with_prior", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(make_case, pooling, with_prior, dtype):
    case = make_case((3,), dtype=dtype)
    previous = torch.tensor([-1, 0, 3]) if with_prior else None
    log_prior = torch.tensor([0.1, 0.0, -0.3, 0.2]).repeat(3, 1) if with_prior else None
    given = (case.logits, case.unconditional, log_prior, previous, 0.25, 0.1, 0.9, pooling, True)
    for x in given[:3]:
        if x is not None:
            x.requires_grad_()
    torch.library.opcheck(op.context_merge_op, (*given, "reference"))
    upstream = torch.randn(3, 23), torch.randn(3, 4)
    tensors = [None if x is None else x.detach() for x in given[:4]]
    torch.library.opcheck(op.context_merge_backward_op, (*tensors, *upstream, *given[4:]))
    probabilities = case.logits.detach().float().softmax(-1)
    torch.library.opcheck(custom_pooling.smallest_kept_op, (probabilities, 0.9))


@pytest.mark.opcheck
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("renormalise_entropy", [True, False])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_gradcheck(make_case, pooling, renormalise_entropy, top_p):
    case = make_case((2,), dtype=torch.float64)
    options = {"pooling": pooling, "renormalise_entropy": renormalise_entropy, "top_p": top_p,
               "beta": 0.7, "previous": torch.tensor([1, -1])}  # fmt: skip
    logits, unconditional, prior = leaves(case)
    # The excluded context's weight is at the edge of where a weight may be.
    weights = (torch.arange(4) != 2).double()

    def function(logits, unconditional, prior):
        merged = context_merge(logits, unconditional, prior=prior * weights, **options)
        return finite(merged.log_probs), merged.entropies

    assert torch.autograd.gradcheck(function, (logits, unconditional, prior))


@pytest.mark.opcheck
def test_gradcheck_where_contexts_have_no_token_in_common(make_case):
    case = make_case((1,), 3, 6, dtype=torch.float64)
    for context in range(3):
        case.logits[0, context, context] += 12.0
    logits, unconditional, _ = leaves(case)

    def function(logits, unconditional):
        return finite(context_merge(logits, unconditional, pooling="mean").log_probs)

    assert torch.autograd.gradcheck(function, (logits, unconditional))


def test_gradient_of_tokens_that_cannot_be(make_case):
    case = make_case((2,), dtype=torch.float64)
    for pooling in POOLINGS:
        logits, unconditional, _ = leaves(case)
        with torch.no_grad():
            logits[..., ::3] = unconditional[..., ::2] = -torch.inf
        merged = context_merge(logits, unconditional, pooling=pooling, top_p=1.0)
        (finite(merged.log_probs).square().sum() + merged.entropies.sum()).backward()
        assert logits.grad is not None
        assert unconditional.grad is not None
        assert logits.grad.isfinite().all()
        assert unconditional.grad.isfinite().all()
        assert not logits.grad[..., ::3].any()


def test_half_precision_gradients(make_case):
    case = make_case((2,), dtype=torch.bfloat16)
    logits, unconditional = (x.detach().requires_grad_() for x in (case.logits, case.unconditional))
    merged = context_merge(logits, unconditional)
    grads = torch.autograd.grad(finite(merged.log_probs).square().sum(), (logits, unconditional))
    wide = [x.detach().double().requires_grad_() for x in (logits, unconditional)]
    exact = finite(context_merge(*wide).log_probs).square().sum()
    for got, want in zip(grads, torch.autograd.grad(exact, wide), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-3)


def test_the_backward_cannot_be_differentiated(make_case):
    logits, unconditional, _ = leaves(make_case())
    loss = finite(context_merge(logits, unconditional).log_probs).square().sum()
    with pytest.raises(RuntimeError, match="context_merge_backward"):
        torch.autograd.grad(loss, logits, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("pooling", [*POOLINGS, "function"])
def test_compiles_as_one_graph_for_changing_sizes(make_case, compiler, pooling):
    torch.compiler.reset()

    def step(logits, unconditional, prior):
        if pooling == "function":
            merged = custom_pooling.pool_with(
                lambda rows, entropies: rows.logsumexp(-2) - entropies.mean(-1, keepdim=True),
                logits * 2, unconditional, beta=0.3, eta=0.1, top_p=0.9,
                renormalise_entropy=False, previous=None,
            )  # fmt: skip
        else:
            merged = context_merge(logits * 2, unconditional, pooling=pooling, prior=prior)
        return finite(merged.log_probs).square().sum() + merged.entropies.sum(), merged.chosen

    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=True)
    for questions, vocabulary in ((2, 23), (3, 31), (5, 5000)):
        case = make_case((questions,), 4, vocabulary)
        results = []
        for function in (compiled, step):
            given = leaves(case, torch.float32)
            loss, chosen = function(*given)
            wanted = given[:2]
            results.append((loss, chosen, *torch.autograd.grad(loss, wanted)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_any_strides(make_case, pooling):
    case = make_case((3, 2), 4, 50)
    expected = context_merge(case.logits, case.unconditional, pooling=pooling)
    transposed = case.logits.transpose(1, 3).contiguous().transpose(1, 3)
    expanded = case.unconditional[..., None].repeat(1, 1, 1, 2)[..., 1]
    merged = context_merge(transposed, expanded, pooling=pooling)
    torch.testing.assert_close(merged, expected)


def test_autocast_changes_nothing(make_case):
    case = make_case()
    expected = context_merge(case.logits, case.unconditional)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = context_merge(case.logits, case.unconditional)
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)


def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(make_case):
    case = make_case((2, 3), dtype=torch.bfloat16)
    real = context_merge(case.logits, case.unconditional, prior=PRIOR)
    with FakeTensorMode() as mode:
        given = [mode.from_tensor(x) for x in (case.logits, case.unconditional)]
        fake = context_merge(*given)
    meta = context_merge(
        case.logits.to("meta"), case.unconditional.to("meta"), prior=PRIOR.to("meta")
    )
    for one in (fake, meta):
        for got, want in zip(one, real, strict=True):
            assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


def test_no_questions(make_case):
    for vocabulary in (23, 5000):
        merged = context_merge(torch.zeros(0, 4, vocabulary), torch.zeros(0, vocabulary))
        assert merged.log_probs.shape == (0, vocabulary)
        assert merged.entropies.shape == (0, 4)


def test_importing_it_does_not_import_triton():
    code = "import sys, ropewalk.kernels.context_merge; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_is_the_reference_on_a_cpu():
    assert backend.implementation(torch.zeros(1), "auto") is reference


@pytest.mark.skipif(interpreted(), reason="the interpreter takes tensors on a CPU")
def test_triton_on_a_cpu_is_refused(make_case):
    case = make_case()
    with pytest.raises(ValueError, match="'triton' cannot run: expected tensors on a CUDA device"):
        context_merge(case.logits, case.unconditional, backend="triton")


def test_float64_is_for_the_reference():
    pytest.importorskip("triton")
    cuda = type("OnCuda", (), {"device": torch.device("cuda"), "dtype": torch.float64})()
    assert backend.implementation(cuda, "auto") is reference
    with pytest.raises(ValueError, match=r"got float64; use \.float\(\)"):
        backend.implementation(cuda, "triton")


def test_without_triton_a_gpu_takes_the_reference(monkeypatch):
    cuda = type("OnCuda", (), {"device": torch.device("cuda"), "dtype": torch.bfloat16})()
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backend.implementation(cuda, "auto") is reference
    with pytest.raises(ValueError, match=r"triton is not installed; install ropewalk\[gpu\]"):
        backend.implementation(cuda, "triton")
