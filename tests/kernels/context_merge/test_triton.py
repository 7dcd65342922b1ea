"""Triton's kernels equal the oracle: interpreted and on a device.

Interpreted, blocks have four logits and splits sixteen, so that small rows have many of both.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.context_merge import context_merge, triton
from ropewalk.kernels.context_merge.problem import POOLINGS, Problem
from ropewalk.kernels.context_merge.triton import configurations

NOTHING = -math.inf
MARGIN = 1e-5
"""Of masses and of scores: nearer to each other than this, either is right in float32."""


@pytest.fixture
def check(merge_oracle):
    """`check(case)`: the kernels' result is the oracle's."""

    def compare(case) -> None:
        found = context_merge(case.logits, case.unconditional, backend="triton", **case.options)
        log_probs, chosen, entropies = merge_oracle(case)
        assert torch.equal(found.chosen.cpu(), chosen)
        assert torch.equal(found.log_probs.cpu() == NOTHING, log_probs == NOTHING)
        for ours, truth in ((found.log_probs, log_probs), (found.entropies, entropies)):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.cpu().double(), truth, rtol=1e-5, atol=2e-5)

    return compare


def margin(case, entropies: Tensor) -> float:
    """How near a mass above a token comes to top_p, and the second least score to the least."""
    rows = torch.cat((case.logits, case.unconditional[..., None, :]), -2).double().softmax(-1)
    least = math.inf
    if case.options.get("top_p", 0.95) < 1.0:
        for row in rows.flatten(0, -2):
            above = torch.stack([row[row > p].sum() for p in row.unique()])
            least = min(least, float((above - case.options.get("top_p", 0.95)).abs().min()))
    scores = entropies.sort(-1).values
    return min(least, float(scores.diff(dim=-1).abs().amin())) if scores.shape[-1] > 1 else least


SIZES = [(1, 1, 1), (1, 1, 5), (2, 3, 17), (3, 2, 33), (1, 5, 70)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equal_to_the_oracle(size, pooling, make_case, check, kernel_device, uninitialised):
    questions, contexts, vocabulary = size
    check(make_case((questions,), contexts, vocabulary, device=kernel_device, pooling=pooling))


def given_options(device: torch.device) -> dict:
    """A prior that leaves a context out, and contexts of the step before."""
    prior = torch.tensor([[1.0, 0.0, 2.5], [0.2, 0.4, 0.1]], device=device)
    return {"prior": prior, "previous": torch.tensor([2, -1], device=device)}


OPTIONS = {
    "bonus": ("min_entropy", {"eta": 3.0}),
    "renormalised": ("entropy_weighted", {"renormalise_entropy": True}),
    "whole": ("entropy_weighted", {"top_p": 1.0}),
    "whole mean": ("mean", {"top_p": 1.0, "beta": 3.0}),
    "whole, renormalised": ("min_entropy", {"top_p": 1.0, "renormalise_entropy": True}),
    "nearly whole": ("max", {"top_p": 0.999}),
    "the most likely": ("max", {"top_p": 1e-3}),
    "nothing taken off": ("min_entropy", {"beta": 0.0}),
    "only which tokens": ("mean", {"beta": -1.0}),
    "much taken off": ("entropy_weighted", {"beta": 5.0}),
    "a part added": ("max", {"beta": -0.5}),
}


@pytest.mark.parametrize("given", [False, True], ids=["bare", "prior and previous"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, given, make_case, check, kernel_device, uninitialised):
    pooling, options = OPTIONS[option]
    if given:
        options = options | given_options(kernel_device)
    check(make_case((2,), 3, 37, device=kernel_device, pooling=pooling, seed=3, **options))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_exactly(dtype, pooling, make_case, check, kernel_device):
    check(make_case((1,), 3, 37, dtype=dtype, device=kernel_device, pooling=pooling, seed=1))


SHAPES = {
    "flat as noise": (0.01, 0.0),
    "nearly flat": (0.3, 0.0),
    "peaked": (9.0, 0.0),
    "far below zero": (4.0, -300.0),
    "far above zero": (4.0, 5000.0),
    "on both sides of zero": (1.0, -0.5),
}


@pytest.mark.parametrize("top_p", [0.3, 0.95])
@pytest.mark.parametrize("shape", SHAPES)
def test_wherever_the_threshold_lies(shape, top_p, make_case, check, kernel_device):
    """A few blocks hold what is kept, or all; the maxima alone hold enough, or not."""
    scale, shift = SHAPES[shape]
    case = make_case((1,), 1, 90, scale=scale, device=kernel_device, top_p=top_p, seed=5)
    case.logits, case.unconditional = case.logits + shift, case.unconditional + shift
    check(case)


def rows_of(logits: list[list[float]], device: torch.device) -> Tensor:
    return torch.tensor([logits], device=device)


def test_equals_stay_or_go_together(make_case, check, kernel_device):
    """Of three equals at the threshold two would do; zeros of both signs are equals."""
    rows = rows_of(
        [
            [2.0, 0.0, -0.0, 0.0, -3.0, -9.0, -9.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [5.0, -1.0, -1.0, -1.0, -1.0, -1.0, -2.0],
        ],
        kernel_device,
    )
    for top_p in (0.75, 0.9):
        case = make_case(top_p=top_p, beta=0.0)
        case.logits, case.unconditional = rows, rows[:, 0]
        check(case)
        # The choice is the row without equals; each row by itself shows its own cut.
        for row in rows.unbind(1):
            case.logits = row[:, None]
            check(case)


def test_neighbouring_numbers_are_told_apart(make_case, check, kernel_device):
    """The threshold lies between two float32 that differ in their last bit."""
    row = torch.full((40,), 1.0, device=kernel_device)
    row[1::2] = torch.nextafter(row[0], torch.tensor(0.0))
    case = make_case(top_p=0.4999, beta=0.0)
    case.logits, case.unconditional = row[None, None], row[None]
    check(case)
    kept = context_merge(case.logits, case.unconditional, backend="triton", **case.options)
    assert int((kept.log_probs > NOTHING).sum()) == 20


@pytest.mark.parametrize("top_p", [0.8, 1.0])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_impossible_tokens(pooling, top_p, make_case, check, kernel_device, uninitialised):
    """Logits of −∞: some, whole blocks and splits, all but one."""
    case = make_case((2,), 3, 50, device=kernel_device, pooling=pooling, top_p=top_p, seed=2)
    case.logits[0, 0, ::3] = NOTHING
    case.logits[0, 1, :32] = NOTHING
    case.logits[1, 2, 1:] = NOTHING
    case.unconditional[0, 5:] = NOTHING
    check(case)


def test_a_mean_without_common_tokens(make_case, check, kernel_device, uninitialised):
    """The first question has none, the second has some; one context of the third has no weight."""
    case = make_case((3,), 3, 45, scale=0.2, device=kernel_device, pooling="mean", seed=4)
    for question in (0, 2):
        case.logits[question, torch.arange(3), torch.arange(3) * 20] = 12.0
    case.options["prior"] = torch.tensor([[1.0, 1, 2], [1, 1, 1], [1, 1, 0]]).to(kernel_device)
    check(case)


def test_the_first_of_equal_contexts_is_chosen(make_case, check, kernel_device):
    case = make_case((1,), 4, 30, scale=3.0, device=kernel_device)
    case.logits[:, 3] = case.logits[:, 1]
    check(case)
    alone = context_merge(case.logits[:, [1]], case.unconditional, backend="triton")
    doubled = context_merge(case.logits[:, [1, 3]], case.unconditional, backend="triton")
    assert doubled.chosen.item() == 0
    assert torch.equal(alone.log_probs, doubled.log_probs)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, otherwise in memory, with what must not be read between them."""
    poison = torch.full_like(x, torch.nan)
    if layout == "followed by no numbers":
        return torch.cat((x, poison), -1)[..., : x.shape[-1]]
    if layout == "scattered":
        return torch.stack((x, poison), -1)[..., 0]
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("vocabulary", [32, 37])
@pytest.mark.parametrize("layout", ["followed by no numbers", "scattered", "turned"])
def test_any_strides(layout, vocabulary, make_case, check, kernel_device, uninitialised):
    case = make_case((2,), 2, vocabulary, device=kernel_device, pooling="mean")
    case.logits = laid_out(case.logits, layout)
    check(case)
    case.unconditional = laid_out(case.unconditional, layout)
    check(case)


def test_one_row_for_all_contexts(make_case, check, kernel_device):
    """Expanded rows have a stride of 0."""
    case = make_case((2,), 1, 30, device=kernel_device)
    case.logits = case.logits.expand(2, 3, 30)
    case.unconditional = case.unconditional[:1].expand(2, 30)
    check(case)


def test_no_questions(make_case, kernel_device):
    case = make_case((0,), 3, 30, device=kernel_device)
    found = context_merge(case.logits, case.unconditional, backend="triton")
    assert [tuple(x.shape) for x in found] == [(0, 30), (0,), (0, 3)]


@pytest.mark.parametrize("pooling", ["min_entropy", "mean"])
def test_results_repeat_bit_for_bit(pooling, make_case, kernel_device):
    case = make_case((1,), 2, 50, scale=0.5, device=kernel_device, pooling=pooling)
    runs = [
        context_merge(case.logits, case.unconditional, backend="triton", **case.options)
        for _ in range(2)
    ]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
@pytest.mark.parametrize("place", [0, 29])
def test_what_is_no_number_shows(place, make_case, kernel_device):
    """And the search for a threshold ends all the same."""
    case = make_case((1,), 1, 30, device=kernel_device)
    case.logits[0, 0, place] = torch.nan
    found = context_merge(case.logits, case.unconditional, backend="triton")
    assert found.entropies.isnan().all()
    assert found.log_probs.isnan().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("row", ["logits", "unconditional"])
def test_one_row_of_no_number_shows(row, pooling, make_case, kernel_device):
    case = make_case((2,), 3, 30, device=kernel_device, pooling=pooling)
    (case.logits[0, 1] if row == "logits" else case.unconditional[0])[7] = torch.nan
    found = context_merge(case.logits, case.unconditional, backend="triton", **case.options)
    assert found.log_probs[0].isnan().any()
    assert not found.log_probs[1].isnan().any()


@settings(
    max_examples=10, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 40)),
    scale=st.sampled_from([0.1, 1.0, 3.0, 12.0]),
    rounded=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "top_p": st.floats(0.05, 0.999),
            "beta": st.sampled_from([0.25, -1.0, 0.0, 2.0]),
            "pooling": st.sampled_from(POOLINGS),
            "renormalise_entropy": st.booleans(),
        }
    ),
    seed=st.integers(0, 99),
)
def test_sizes_and_options(
    size, scale, rounded, options, seed, make_case, merge_oracle, check, kernel_device
):
    questions, contexts, vocabulary = size
    case = make_case(
        (questions,), contexts, vocabulary, scale=scale, seed=seed, device=kernel_device, **options
    )
    if rounded:  # many equals
        case.logits, case.unconditional = case.logits.round(), case.unconditional.round()
    assume(margin(case, merge_oracle(case)[2]) > MARGIN)
    check(case)


@pytest.mark.parametrize(
    ("shape", "vocabulary", "dtype"),
    [
        ("flat as noise", 20011, torch.bfloat16),
        ("on both sides of zero", 20011, torch.float32),
        ("peaked", 20011, torch.float32),
        ("far above zero", 20011, torch.float16),
        ("peaked", 264, torch.bfloat16),
        ("nearly flat", 264, torch.float32),
    ],
    ids=str,
)
def test_sizes_that_are_shipped(
    shape, vocabulary, dtype, make_case, check, kernel_device, monkeypatch
):
    small = vocabulary <= configurations.SMALL.width * configurations.SMALL.blocks
    shipped = configurations.SMALL if small else configurations.LARGE
    monkeypatch.setattr(configurations, "INTERPRETED", shipped)
    scale, shift = SHAPES[shape]
    case = make_case((1,), 2, vocabulary, scale=scale, device=kernel_device, seed=6)
    case.logits = (case.logits + shift).to(dtype)
    case.unconditional = (case.unconditional + shift).to(dtype)
    check(case)


def test_the_package_takes_a_problem(make_case, kernel_device):
    """As the operator hands it over: all of it, and nothing that is not there."""
    case = make_case((2,), 3, 30, device=kernel_device)
    problem = Problem(
        case.logits, case.unconditional, None, None, 0.25, 0.1, 0.95, "min_entropy", False
    )
    expected = context_merge(case.logits, case.unconditional, backend="triton")
    torch.testing.assert_close(triton.merge(problem), tuple(expected), rtol=0, atol=0)
    assert triton.unsupported(case.logits) is None
