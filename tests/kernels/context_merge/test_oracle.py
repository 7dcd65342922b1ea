"""The reference equals a plain float64 loop, over every option, shape and dtype."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ropewalk.kernels.context_merge import POOLINGS, context_merge

TOLERANCE = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-12},
    torch.float32: {"atol": 3e-6, "rtol": 3e-6},
    # Half precision rounds the logits; what is made of them is float32.
    torch.bfloat16: {"atol": 3e-6, "rtol": 3e-6},
    torch.float16: {"atol": 3e-6, "rtol": 3e-6},
}


def check(case, oracle):
    merged = context_merge(case.logits, case.unconditional, **case.options)
    log_probs, chosen, entropies = oracle(case)
    tolerance = TOLERANCE[case.logits.dtype]
    expected = torch.float64 if case.logits.dtype == torch.float64 else torch.float32
    assert merged.log_probs.dtype == merged.entropies.dtype == expected
    torch.testing.assert_close(merged.entropies.double(), entropies, **tolerance)
    assert merged.chosen.tolist() == chosen.tolist()
    torch.testing.assert_close(merged.log_probs.double(), log_probs, **tolerance)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
def test_every_pooling_and_dtype(make_case, merge_oracle, pooling, dtype, top_p):
    case = make_case(pooling=pooling, dtype=dtype, top_p=top_p)
    check(case, merge_oracle)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("questions", "contexts", "vocabulary"),
    [((), 3, 11), ((1,), 1, 1), ((3,), 1, 17), ((2, 3), 5, 264), ((1,), 2, 4099)],
)
def test_shapes(make_case, merge_oracle, pooling, questions, contexts, vocabulary):
    check(make_case(questions, contexts, vocabulary, pooling=pooling), merge_oracle)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("renormalise_entropy", [False, True])
def test_previous_prior_and_entropy(make_case, merge_oracle, pooling, renormalise_entropy):
    case = make_case(
        (6,),
        5,
        40,
        pooling=pooling,
        eta=0.7,
        renormalise_entropy=renormalise_entropy,
        previous=torch.tensor([-1, 0, 1, 2, 3, 4]),
        prior=torch.rand(6, 5, generator=torch.Generator().manual_seed(1)),
    )
    case.options["prior"][2, 1] = 0.0
    check(case, merge_oracle)
    case.options["prior"] = torch.tensor([1.0, 0.0, 2.0, 5.0, 0.0])
    check(case, merge_oracle)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("beta", [-1.0, -0.5, 0.0, 3.0])
def test_beta(make_case, merge_oracle, pooling, beta):
    check(make_case(pooling=pooling, beta=beta), merge_oracle)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_tokens_that_cannot_be(make_case, merge_oracle, pooling, top_p):
    case = make_case(pooling=pooling, top_p=top_p)
    case.logits[..., ::3] = -math.inf
    case.unconditional[..., ::2] = -math.inf
    check(case, merge_oracle)


def test_mean_of_contexts_without_a_token_in_common(merge_oracle, make_case):
    case = make_case((1,), 3, 6, pooling="mean")
    case.logits[:] = 0.0
    for context in range(3):
        case.logits[0, context, context] = 20.0  # all that is kept
    check(case, merge_oracle)
    merged = context_merge(case.logits, case.unconditional, pooling="mean", beta=0.0)
    assert merged.log_probs.isfinite().tolist() == [[True, True, True, False, False, False]]


def test_equals_stay_or_go_together(merge_oracle, make_case):
    case = make_case((1,), 2, 8, beta=0.0)
    case.logits[:] = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    case.options["top_p"] = 0.7  # reached by the second of the four equals
    merged = context_merge(case.logits, case.unconditional, **case.options)
    assert merged.log_probs.isfinite().tolist() == [[True] * 5 + [False] * 3]
    check(case, merge_oracle)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("top_p", [0.05, 0.95, 0.9999])
def test_search_of_large_vocabularies(make_case, merge_oracle, scale, top_p):
    """From all equal to nearly all in one token: the search's every way to end."""
    check(make_case((1,), 2, 20011, scale=scale, dtype=torch.float64, top_p=top_p), merge_oracle)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("vocabulary", [11, 5000])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_nan_is_not_hidden(make_case, pooling, vocabulary, top_p):
    for row in ("logits", "unconditional"):
        case = make_case((2,), 3, vocabulary, pooling=pooling, top_p=top_p)
        (case.logits[0, 1] if row == "logits" else case.unconditional[0])[5] = math.nan
        merged = context_merge(case.logits, case.unconditional, **case.options)
        assert merged.log_probs[0].isnan().any()
        assert not merged.log_probs[1].isnan().any()


def hangs_on_rounding(case):
    """Whether a cut falls just where top-p ends, or two contexts score the same."""
    rows = torch.cat([case.logits, case.unconditional[:, None]], dim=1).softmax(-1)
    ordered = rows.sort(-1, descending=True).values
    on_the_edge = (ordered.cumsum(-1) - case.options["top_p"]).abs() < 1e-9
    if case.options["top_p"] < 1.0 and bool(on_the_edge.any()):
        return True
    options = {**case.options, "eta": 0.0}
    entropies = context_merge(case.logits, case.unconditional, **options).entropies
    again = case.options["previous"][:, None] == torch.arange(entropies.shape[1])
    scores = torch.where(again, entropies - case.options["eta"], entropies)
    return bool((scores.sort(-1).values.diff(dim=-1) < 1e-9).any())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(1, 40),
    contexts=st.integers(1, 5),
    levels=st.sampled_from([1, 2, 5, 1000]),
    top_p=st.floats(0.01, 1.0),
    beta=st.floats(-1.0, 4.0),
    eta=st.floats(0.0, 2.0),
    pooling=st.sampled_from(POOLINGS),
    renormalise=st.booleans(),
)
def test_any_problem(
    make_case,
    merge_oracle,
    seed,
    vocabulary,
    contexts,
    levels,
    top_p,
    beta,
    eta,
    pooling,
    renormalise,
):
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randint(-1, contexts, (3,), generator=generator)
    case = make_case(
        (3,), contexts, vocabulary, scale=levels / 2, seed=seed, dtype=torch.float64,
        top_p=top_p, beta=beta, eta=eta, pooling=pooling, renormalise_entropy=renormalise,
        previous=previous,
    )  # fmt: skip
    for rows in (case.logits, case.unconditional):  # with ties
        rows.copy_(rows.round() / levels * 4)
    assume(not hangs_on_rounding(case))
    merged = context_merge(case.logits, case.unconditional, **case.options)
    log_probs, chosen, entropies = merge_oracle(case)
    torch.testing.assert_close(merged.entropies, entropies, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(merged.log_probs, log_probs, atol=1e-9, rtol=1e-9)
    assert merged.chosen.tolist() == chosen.tolist()
