"""NBCE's step: exact naive Bayes, its limits and presets, and a state that is passed on."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ropewalk.blocks.nbce import ContextMerge, MergeState


def rows(*shape, seed=0, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    return made.log_softmax(-1).to(dtype)


def plain(conditional, unconditional, **changed):
    """ContextMerge without cut, bonus or guidance, and then what is changed."""
    return ContextMerge(**{"beta": 0.0, "eta": 0.0, "top_p": 1.0, **changed}).merge(
        conditional, unconditional
    )


@pytest.mark.parametrize("contexts", [1, 2, 3, 5])
def test_naive_bayes_is_exact_on_a_joint_distribution(contexts):
    """A joint p(T, S_1 … S_n) with contexts independent given T, conditioned by counting."""
    generator = np.random.default_rng(contexts)
    answers, values = 6, 3
    prior = generator.dirichlet(np.ones(answers))
    likelihoods = generator.dirichlet(np.ones(values), size=(contexts, answers))
    seen = generator.integers(values, size=contexts)
    # The whole table, so that conditioning is nothing but picking and dividing.
    joint = prior.reshape(answers, *[1] * contexts)
    for context in range(contexts):
        shape = [answers] + [1] * contexts
        shape[1 + context] = values
        joint = joint * likelihoods[context].reshape(shape)
    posterior = joint[(slice(None), *seen)]
    posterior = posterior / posterior.sum()
    conditional = []
    for context in range(contexts):
        others = tuple(axis for axis in range(1, contexts + 1) if axis != context + 1)
        pair = joint.sum(axis=others)[:, seen[context]]
        conditional.append(np.log(pair / pair.sum()))

    merge = ContextMerge.naive_bayes(contexts)
    found, _ = merge.merge(torch.tensor(np.array(conditional)), torch.tensor(np.log(prior)))
    np.testing.assert_allclose(found.exp().numpy(), posterior, rtol=0, atol=1e-10)


def test_beta_0_is_the_chosen_contexts_own_distribution():
    conditional, unconditional = rows(4, 5, 30), rows(4, 30, seed=1)
    found, state = plain(conditional, unconditional)
    torch.testing.assert_close(found, conditional[torch.arange(4), state.chosen])
    assert state.chosen.tolist() == state.entropies.argmin(-1).tolist()
    entropy = -(conditional.exp() * conditional).sum(-1)
    torch.testing.assert_close(state.entropies, entropy)


@pytest.mark.parametrize("pooling", ["min_entropy", "mean", "max", "entropy_weighted"])
def test_one_context_and_copies_of_it_are_the_same(pooling):
    conditional, unconditional = rows(3, 1, 30), rows(3, 30, seed=1)
    merge = ContextMerge(pooling=pooling)
    one, state = merge.merge(conditional, unconditional)
    assert state.chosen.tolist() == [0, 0, 0]
    assert not one.isnan().any()
    copies, _ = merge.merge(conditional.repeat(1, 7, 1), unconditional)
    torch.testing.assert_close(copies, one)


@pytest.mark.parametrize("pooling", ["min_entropy", "mean", "max", "entropy_weighted"])
def test_order_of_contexts_changes_nothing_but_their_numbers(pooling):
    conditional, unconditional = rows(4, 6, 30), rows(4, 30, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    merge = ContextMerge(pooling=pooling)
    found, state = merge.merge(conditional, unconditional)
    again, permuted = merge.merge(conditional[:, order], unconditional)
    torch.testing.assert_close(again, found)
    assert order[permuted.chosen].tolist() == state.chosen.tolist()
    torch.testing.assert_close(permuted.entropies, state.entropies[:, order])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_guidance_is_that_of_transformers(scale):
    conditional, unconditional = rows(2, 1, 30), rows(2, 30, seed=1)

    class Model:
        """Gives the unconditional scores, which the processor asks a model for."""

        def __call__(self, *_, **__):
            return type("Output", (dict,), {"logits": unconditional[:, None]})()

    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Model())
    expected = processor(torch.zeros(2, 3, dtype=torch.int64), conditional[:, 0])
    found, _ = ContextMerge.classifier_free_guidance(scale).merge(conditional, unconditional)
    torch.testing.assert_close(found, expected.log_softmax(-1))
    if scale >= 1.0:
        aware, _ = ContextMerge.context_aware_decoding(scale - 1.0).merge(
            conditional, unconditional
        )
        torch.testing.assert_close(aware, found)


def test_context_aware_decoding_is_its_paper():
    """softmax((1 + α) logits(with) − α logits(without)), equation 2 of arXiv 2305.14739."""
    conditional, unconditional = rows(1, 30) * 3, rows(30, seed=1) + 5
    found, _ = ContextMerge.context_aware_decoding(0.5).merge(conditional, unconditional)
    expected = (1.5 * conditional[0] - 0.5 * unconditional).softmax(-1)
    torch.testing.assert_close(found.exp(), expected)


def test_the_bonus_keeps_the_context_of_the_step_before():
    conditional = torch.tensor([[0.6, 0.2, 0.2], [0.58, 0.21, 0.21]], dtype=torch.float64).log()
    unconditional = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    difference = ContextMerge(top_p=1.0).merge(conditional, unconditional)[1].entropies.diff()
    for eta, chosen in ((float(difference) * 0.99, 0), (float(difference) * 1.01, 1)):
        merge = ContextMerge(top_p=1.0, eta=eta)
        _, first = merge.merge(conditional, unconditional)
        assert first.chosen == 0
        before = MergeState(torch.tensor(1), first.entropies)
        _, second = merge.merge(conditional, unconditional, before)
        assert second.chosen == chosen
        torch.testing.assert_close(second.entropies, first.entropies)  # as they are


def test_a_prior_weighs_in_nats():
    conditional, unconditional = rows(2, 30), rows(30, seed=1)
    merge = ContextMerge(eta=0.0)
    entropies = merge.merge(conditional, unconditional)[1].entropies
    surer, other = entropies.argmin(), entropies.argmax()
    ratio = math.exp(entropies[other] - entropies[surer])
    for factor, chosen in ((0.99, surer), (1.01, other)):
        prior = torch.ones(2)
        prior[other] = ratio * factor
        assert merge.merge(conditional, unconditional, prior=prior)[1].chosen == chosen
    found, state = merge.merge(conditional, unconditional, prior=[1.0, 0.0])
    alone, _ = merge.merge(conditional[:1], unconditional)
    assert state.chosen == 0
    torch.testing.assert_close(found, alone)


def test_where_the_unconditional_row_is_cut_the_pooled_one_is_alone():
    conditional = torch.tensor([[0.5, 0.3, 0.1, 0.1]], dtype=torch.float64).log()
    unconditional = torch.tensor([0.91, 0.05, 0.03, 0.01], dtype=torch.float64).log()
    found, _ = ContextMerge(beta=1.0, top_p=0.9).merge(conditional, unconditional)
    # Of the context all are kept, 0.8 being above its last; of the unconditional row the first.
    merged = np.array([0.5**2 / 0.91, 0.3, 0.1, 0.1])
    np.testing.assert_allclose(found.exp().numpy(), merged / merged.sum(), rtol=1e-12)


def test_a_function_pools():
    conditional, unconditional = rows(2, 4, 30), rows(2, 30, seed=1)
    seen = []

    def largest(log_probs, entropies):
        seen.append((log_probs, entropies))
        return log_probs.amax(-2)

    for renormalise in (False, True):
        options = {"renormalise_entropy": renormalise, "top_p": 0.8}
        first = MergeState(torch.tensor([1, 2]), torch.zeros(2, 4))
        function = ContextMerge(pooling=largest, **options)
        found, state = function.merge(conditional, unconditional, first)
        named, same = ContextMerge(pooling="max", **options).merge(
            conditional, unconditional, first
        )
        torch.testing.assert_close(found, named)
        torch.testing.assert_close(state, same)
        log_probs, entropies = seen[-1]
        assert (log_probs == -math.inf).any()
        torch.testing.assert_close(entropies, state.entropies)
    single, _ = function.merge(conditional[0], unconditional[0])
    torch.testing.assert_close(single, found[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="prior: expected None where pooling is a function"):
        function.merge(conditional, unconditional, prior=[1.0] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_questions_one_by_one(dtype):
    conditional, unconditional = rows(3, 4, 30, dtype=dtype), rows(3, 30, seed=1, dtype=dtype)
    merge = ContextMerge()
    found, state = merge.merge(conditional, unconditional)
    second, _ = merge.merge(conditional, unconditional, state)
    assert found.dtype == torch.float32
    for question in range(3):
        alone, one = merge.merge(conditional[question], unconditional[question])
        torch.testing.assert_close(alone, found[question])
        again, _ = merge.merge(conditional[question], unconditional[question], one)
        torch.testing.assert_close(again, second[question])


def test_it_compiles_with_its_state():
    torch.compiler.reset()
    merge = ContextMerge()

    def two_steps(conditional, unconditional):
        _, state = merge.merge(conditional, unconditional)
        return merge.merge(conditional, unconditional, state, prior=[1.0, 2.0, 1.0])

    given = rows(2, 3, 30, dtype=torch.float32), rows(2, 30, seed=1, dtype=torch.float32)
    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), two_steps(*given))


def test_it_is_a_value():
    merge = ContextMerge(beta=0.5)
    assert copy.deepcopy(merge) == merge == pickle.loads(pickle.dumps(merge))
    assert merge != ContextMerge()
    assert {merge: 1}[ContextMerge(beta=0.5)] == 1


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "beta: expected a finite number of at least −1, got -2", {"beta": -2}),
        (ValueError, "top_p: expected 0 < top_p ≤ 1, where 1 keeps all, got 0.0", {"top_p": 0.0}),
        (ValueError, "top_p: expected 0 < top_p ≤ 1", {"top_p": 1.5}),
        (ValueError, "eta: expected a finite number of at least 0", {"eta": -1.0}),
        (ValueError, "pooling: expected one of min_entropy, mean", {"pooling": "average"}),
        (TypeError, "pooling: expected a name or a function", {"pooling": 3}),
        (TypeError, "ContextMerge.beta: expected a number, got '1'", {"beta": "1"}),
        (TypeError, "ContextMerge.top_p: expected a number", {"top_p": np.float32(0.9)}),
        (TypeError, "renormalise_entropy: expected True or False", {"renormalise_entropy": "no"}),
        (ValueError, "backend: expected one of", {"backend": "cpu"}),
        (
            ValueError,
            "backend: expected auto or reference where pooling is a function",
            {"backend": "triton", "pooling": max},
        ),
    ],
)
def test_refused_settings(error, message, options):
    with pytest.raises(error, match=re.escape(message)):
        ContextMerge(**options)


def test_refused_steps():
    merge, conditional, unconditional = ContextMerge(), rows(2, 3, 30), rows(2, 30)
    with pytest.raises(ValueError, match="log_probs: expected at least one context"):
        merge.merge(conditional[:, :0], unconditional)
    with pytest.raises(TypeError, match="previous: expected the MergeState of the step before"):
        merge.merge(conditional, unconditional, torch.zeros(2))
    _, stale = merge.merge(rows(2, 5, 30), unconditional)
    with pytest.raises(ValueError, match="previous: expected the state of 3 contexts, got one of"):
        merge.merge(conditional, unconditional, stale)
    with pytest.raises(ValueError, match="prior: expected floating-point weights"):
        merge.merge(conditional, unconditional, prior=[1.0, 2.0])
    with pytest.raises(ValueError, match="scale: expected at least 0, got -1"):
        ContextMerge.classifier_free_guidance(-1)
    with pytest.raises(ValueError, match="contexts: expected at least 1, got 0"):
        ContextMerge.naive_bayes(0)
