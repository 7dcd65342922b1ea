"""Triton's kernels equal logits that were written out: interpreted and on a device, in float32."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.linear_cross_entropy import chunks, triton
from ropewalk.kernels.linear_cross_entropy.filter import FILTER_COLUMNS, FILTER_TOKENS
from ropewalk.kernels.linear_cross_entropy.problem import (
    ELSEWHERE,
    IGNORED,
    Needs,
    Problem,
    Upstream,
)
from ropewalk.kernels.linear_cross_entropy.triton import configurations

ALL = Needs(True, True, True)


def draw(
    tokens: int,
    dim: int,
    vocabulary: int,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    summed: bool = False,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    exact: bool = True,
    seed: int = 0,
) -> tuple[Problem, Upstream]:
    """A problem with targets of every kind, and an upstream gradient for every token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[1::5], targets[3::7] = IGNORED, ELSEWHERE
    made = Problem(
        normal(tokens, dim).to(device, dtype),
        (2 * normal(vocabulary, dim) / max(dim, 1) ** 0.5).to(device, dtype),
        targets.to(device),
        normal(vocabulary).to(device, dtype) if bias else None,
        normal(vocabulary).to(device) if summed else None,
        logit_scale,
        softcap,
        exact,
    )
    upstream = [normal(tokens).to(device) for _ in range(3)]
    return made, Upstream(upstream[0], upstream[1], upstream[2] if summed else None)


def written_out(p: Problem, upstream: Upstream, dtype: torch.dtype) -> list[Tensor]:
    """Statistics and gradients from logits in memory, by autograd: the twin, and torch's own way.

    The product is in `dtype`, what follows in float32 at least, as people write it.
    """
    given = (p.hidden, p.weight, p.bias)
    leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in given]
    hidden, weight, bias = leaves
    assert hidden is not None
    assert weight is not None
    logits = torch.nn.functional.linear(hidden, weight, bias)
    wide = logits.to(torch.promote_types(dtype, torch.float32)) * p.logit_scale
    if p.softcap is not None:
        wide = p.softcap * torch.tanh(wide / p.softcap)
    counts = p.targets != IGNORED
    here = p.targets >= 0
    found = [
        wide.logsumexp(1).where(counts, 0.0),
        wide.gather(1, p.targets.clamp(min=0)[:, None])[:, 0].where(here, 0.0),
    ]
    if p.sum_weights is not None:
        found.append((wide @ p.sum_weights.to(wide.dtype)).where(counts, 0.0))
    factors = [x.to(wide.dtype) for x in upstream if x is not None]
    needed = [x for x in leaves if x is not None]
    return [*found, *torch.autograd.grad(found, needed, factors)]


def by_kernels(p: Problem, upstream: Upstream, needs: Needs = ALL) -> list[Tensor]:
    """The same from the kernels."""
    found = triton.statistics(p)
    gradients = triton.gradients(p, found.logsumexp, found.live, upstream, needs)
    return [x for x in (*found[:3], *gradients) if x is not None]


def check(p: Problem, upstream: Upstream, as_exact_as) -> None:
    """Both are as exact as torch, and ignored tokens are 0."""
    truth = written_out(p, upstream, torch.float64)
    peer = written_out(p, upstream, p.hidden.dtype)
    ours = by_kernels(p, upstream)
    assert [x.dtype for x in ours[: -2 - (p.bias is not None)]] == [torch.float32] * (
        2 + (p.sum_weights is not None)
    )
    for values in zip(peer, ours, truth, strict=True):
        as_exact_as(*values)
    assert (ours[0][p.targets == IGNORED] == 0).all()
    assert (ours[1][p.targets < 0] == 0).all()


CASES = {
    "odd": ((13, 7, 50), {}),
    "one token": ((1, 5, 37), {}),
    "one column": ((9, 5, 1), {}),
    "one dimension": ((9, 1, 40), {}),
    "bias": ((20, 17, 65), {"bias": True}),
    "softcap": ((20, 17, 65), {"softcap": 1.5}),
    "sum": ((20, 17, 65), {"summed": True}),
    "scale": ((20, 17, 65), {"logit_scale": -0.3}),
    "several groups": ((17, 16, 300), {}),
    "everything": (
        (37, 33, 97),
        {"bias": True, "softcap": 5.0, "summed": True, "logit_scale": 1.7},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_logits_written_out(case, kernel_device, uninitialised, as_exact_as):
    sizes, options = CASES[case]
    check(*draw(*sizes, device=kernel_device, **options), as_exact_as)


@pytest.mark.parametrize("case", ["everything", "odd"])
def test_nothing_is_skipped_where_everything_counts(
    case, kernel_device, uninitialised, as_exact_as
):
    """float32 resolves every probability of a small vocabulary: `exact` makes no difference."""
    sizes, options = CASES[case]
    check(*draw(*sizes, device=kernel_device, exact=False, **options), as_exact_as)


@pytest.mark.parametrize("code", [IGNORED, ELSEWHERE])
@pytest.mark.parametrize("where", [slice(0, 16), slice(16, 32), slice(None)], ids=str)
def test_blocks_without_a_target(code, where, kernel_device, uninitialised, as_exact_as):
    p, upstream = draw(40, 9, 70, device=kernel_device, bias=True, summed=True)
    p.targets[where] = code
    check(p, upstream, as_exact_as)


def test_no_tokens(kernel_device):
    p, upstream = draw(0, 9, 70, device=kernel_device, bias=True, exact=False)
    found = triton.statistics(p)
    assert found.logsumexp.shape == found.target_logit.shape == (0,)
    assert found.live is not None
    assert found.live.shape == (0, 1)
    gradients = triton.gradients(p, found.logsumexp, found.live, upstream, ALL)
    for of, grad in zip((p.hidden, p.weight, p.bias), gradients, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(of))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same matrix, otherwise in memory."""
    if layout == "in columns":
        return x.T.contiguous().T
    if layout == "wide rows":
        return torch.cat((x, torch.full_like(x, torch.nan)), 1)[:, : x.shape[1]]
    return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]


LAYOUTS = [("in columns", "wide rows"), ("wide rows", "in columns"), ("scattered", "scattered")]


def followed_by_nan(x: Tensor) -> Tensor:
    """The same rows, in memory that goes on with what must not be read."""
    return torch.cat((x, torch.full((300, x.shape[1]), torch.nan).to(x)))[: len(x)]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(32, 64), (128, 192), (64, 256), (20, 70)])
def test_nothing_past_the_last_row_is_read(tokens, vocabulary, exact, kernel_device, uninitialised):
    """Whole tiles of the kernels that are no whole tiles of the filter, among others."""
    p, upstream = draw(tokens, 16, vocabulary, device=kernel_device, exact=exact)
    expected = by_kernels(p, upstream)
    alone = replace(p, hidden=followed_by_nan(p.hidden), weight=followed_by_nan(p.weight))
    found = by_kernels(alone, upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("hidden", "weight"), LAYOUTS)
@pytest.mark.parametrize("exact", [True, False])
def test_any_strides(hidden, weight, exact, kernel_device, uninitialised):
    p, upstream = draw(21, 18, 70, device=kernel_device, exact=exact)
    expected = by_kernels(p, upstream)
    strided = Problem(
        laid_out(p.hidden, hidden), laid_out(p.weight, weight), p.targets, p.bias,
        p.sum_weights, p.logit_scale, p.softcap, p.exact,
    )  # fmt: skip
    torch.testing.assert_close(by_kernels(strided, upstream), expected)


def test_vectors_of_any_strides(kernel_device, uninitialised):
    p, upstream = draw(21, 9, 70, device=kernel_device, bias=True, summed=True)
    expected = by_kernels(p, upstream)

    def apart(x: Tensor) -> Tensor:
        return torch.stack((x, torch.zeros_like(x)), -1)[:, 0]

    assert p.bias is not None
    assert p.sum_weights is not None
    scattered = Problem(
        p.hidden, p.weight, apart(p.targets), apart(p.bias), apart(p.sum_weights), 1.0, None, True
    )
    upstream = Upstream(*(None if x is None else apart(x) for x in upstream))
    torch.testing.assert_close(by_kernels(scattered, upstream), expected, rtol=0, atol=0)


def test_one_row_for_all_tokens(kernel_device, as_exact_as):
    """Expanded hidden states have a stride of 0."""
    p, upstream = draw(20, 9, 40, device=kernel_device)
    same = Problem(p.hidden[:1].expand(20, -1), p.weight, p.targets, None, None, 1.0, None, True)
    check(same, upstream, as_exact_as)


@pytest.mark.parametrize("exact", [True, False])
def test_only_what_is_needed(exact, kernel_device, uninitialised):
    p, upstream = draw(20, 9, 70, device=kernel_device, bias=True, exact=exact)
    found = triton.statistics(p)
    expected = triton.gradients(p, found.logsumexp, found.live, upstream, ALL)
    for needs in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)):
        gradients = triton.gradients(
            p, found.logsumexp, found.live, upstream, Needs(*map(bool, needs))
        )
        for needed, grad, full in zip(needs, gradients, expected, strict=True):
            torch.testing.assert_close(grad, full if needed else None)


@pytest.fixture
def large_tiles(monkeypatch):
    """Tiles of half the filter's size, so that sizes beyond its are quickly interpreted."""
    large = configurations.Configuration(64, 128, 64, 4, 1)
    monkeypatch.setattr(configurations, "INTERPRETED", large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("exact", [True, False])
def test_several_chunks(
    exact, dtype, kernel_device, uninitialised, large_tiles, as_exact_as, monkeypatch
):
    """Next to no workspace: three chunks of tokens, by three of columns in the backward."""
    monkeypatch.setattr(chunks, "WORKSPACE", 1)
    p, upstream = draw(
        2 * FILTER_TOKENS + 3, 10, 2 * FILTER_COLUMNS + 5,
        device=kernel_device, dtype=dtype, bias=True, exact=exact,
    )  # fmt: skip
    if not exact:  # at these sizes float16 would leave tiles out
        p.weight[FILTER_COLUMNS:] *= 0.5
    check(p, upstream, as_exact_as)


@settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    tokens=st.integers(1, 24),
    dim=st.integers(1, 40),
    vocabulary=st.integers(1, 90),
    options=st.fixed_dictionaries(
        {
            "bias": st.booleans(),
            "summed": st.booleans(),
            "exact": st.booleans(),
            "softcap": st.sampled_from([None, 2.0]),
            "logit_scale": st.sampled_from([1.0, 0.5]),
            "seed": st.integers(0, 99),
        }
    ),
)
def test_sizes_and_options(tokens, dim, vocabulary, options, kernel_device, as_exact_as):
    check(*draw(tokens, dim, vocabulary, device=kernel_device, **options), as_exact_as)


@pytest.mark.parametrize("exact", [True, False])
def test_results_repeat_bit_for_bit(exact, kernel_device):
    p, upstream = draw(40, 20, 100, device=kernel_device, bias=True, summed=True, exact=exact)
    torch.testing.assert_close(by_kernels(p, upstream), by_kernels(p, upstream), rtol=0, atol=0)


def test_large_logits_do_not_overflow(kernel_device, as_exact_as):
    p, upstream = draw(20, 9, 70, device=kernel_device, logit_scale=100.0)
    assert p.hidden.matmul(p.weight.T).abs().max() * p.logit_scale > 400
    check(p, upstream, as_exact_as)


def test_columns_that_a_bias_hides(kernel_device, as_exact_as):
    """A bias of −∞ takes columns out of the vocabulary, a whole tile of them too."""
    p, upstream = draw(20, 9, 70, device=kernel_device, bias=True)
    assert p.bias is not None
    p.bias[:40] = -torch.inf
    p.targets[p.targets >= 0] = 50
    check(p, upstream, as_exact_as)


def test_small_gradients_of_float16_do_not_vanish(kernel_device):
    """Means over many tokens have upstream gradients below float16's least normal number."""
    p, _ = draw(60, 8, 40, device=kernel_device, dtype=torch.float16, bias=True)
    p = Problem(
        1024 * p.hidden, p.weight / 1024, p.targets, p.bias, None, 1.0, None, True
    )  # fmt: skip
    least = torch.full((60,), 2.0**-20, device=kernel_device)
    upstream = Upstream(least, -least, None)
    found = triton.statistics(p)
    _, grad, bias_grad = triton.gradients(p, found.logsumexp, None, upstream, ALL)
    assert grad is not None
    assert bias_grad is not None
    *_, truth, bias_truth = written_out(p, upstream, torch.float64)
    # Rounded twice, with a relative error of 2⁻¹¹; multiples of 2⁻²⁴ would be 100 times as far off.
    torch.testing.assert_close(grad.double(), truth, rtol=2e-3, atol=2.0**-21)
    torch.testing.assert_close(bias_grad.double(), bias_truth, rtol=2e-3, atol=2.0**-21)
    assert truth.abs().max() > 2.0**-14


def test_chips_before_ampere_are_refused(monkeypatch):
    """Asked of a tensor that says it is on one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    turing = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    assert "8.0" in str(triton.unsupported(turing))
    assert triton.unsupported(torch.empty(1, 1)) is None
