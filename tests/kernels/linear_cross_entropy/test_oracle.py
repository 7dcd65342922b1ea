"""Every option's value and gradients are those of autograd through float64 logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.kernels.linear_cross_entropy import assemble, linear_cross_entropy, reference
from ropewalk.kernels.linear_cross_entropy.reference import tiles, whole_rows

CLASSES = torch.linspace(0.2, 2.0, 301)
OPTIONS = {
    "plain": {},
    "label smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.02},
    "softcap": {"softcap": 1.5},
    "scale": {"logit_scale": 0.3},
    "negative scale and softcap": {"logit_scale": -0.7, "softcap": 2.0},
    "class weights": {"weight_per_class": CLASSES},
    "class weights, smoothing, z-loss": {
        "weight_per_class": CLASSES, "label_smoothing": 0.3, "z_loss": 0.1,
    },
    "everything": {
        "weight_per_class": CLASSES, "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 3.0,
        "logit_scale": 1.7,
    },
    "a token of the vocabulary is ignored": {"ignore_index": 7},
}  # fmt: skip
REDUCTIONS = ("mean", "sum", "none")


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def check(oracle, leaves, targets, options, *, rtol=1e-10, backend="reference"):
    """The loss and every gradient against the oracle, under random upstream gradients."""
    hidden, weight, bias = leaves
    ours = outputs(
        linear_cross_entropy(hidden, weight, targets, bias=bias, backend=backend, **options)
    )
    wide = [None if x is None else x.detach().double().requires_grad_() for x in leaves]
    known = {k: v for k, v in options.items() if k != "exact"}
    truth = outputs(oracle(wide[0], wide[1], targets, bias=wide[2], **known))
    upstream = [torch.randn_like(x) for x in truth]
    gradients = torch.autograd.grad(
        ours, [x for x in leaves if x is not None],
        [g.to(x.dtype) for g, x in zip(upstream, ours, strict=True)],
    )  # fmt: skip
    expected = torch.autograd.grad(truth, [x for x in wide if x is not None], upstream)
    for got, want in zip((*ours, *gradients), (*truth, *expected), strict=True):
        assert got.shape == want.shape
        scale = max((want.abs().max().item() if want.numel() else 0.0), 1e-30)
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=rtol)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("return_logsumexp", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(problem, oracle, name, reduction, return_logsumexp):
    hidden, weight, bias, targets = problem(3, 11)
    if OPTIONS[name].get("ignore_index") is not None:
        targets[targets < 0] = OPTIONS[name]["ignore_index"]
    options = OPTIONS[name] | {"reduction": reduction, "return_logsumexp": return_logsumexp}
    check(oracle, (hidden, weight, bias), targets, options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("return_logsumexp", [False, True])
def test_next_token(problem, oracle, reduction, with_bias, return_logsumexp):
    hidden, weight, bias, targets = problem(2, 9)
    options = {"shift": True, "reduction": reduction, "return_logsumexp": return_logsumexp}
    check(oracle, (hidden, weight, bias if with_bias else None), targets, options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(problem, oracle, dtype):
    """Rounded once: within one rounding of the truth for the same inputs, with many tokens."""
    hidden, weight, bias, targets = problem(4, 600, vocabulary=5000, dtype=dtype)
    rtol = max(torch.finfo(dtype).eps, 1e-5)
    check(oracle, (hidden, weight, bias), targets, {"reduction": "sum"}, rtol=rtol)


def test_the_loss_of_half_precision_is_float32(problem):
    hidden, weight, _, targets = problem(5, dtype=torch.bfloat16)
    loss, logsumexp = linear_cross_entropy(hidden, weight, targets, return_logsumexp=True)
    assert loss.dtype == logsumexp.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_in_any_tiles(oracle, data):
    tokens = data.draw(st.integers(0, 40), "tokens")
    dim = data.draw(st.integers(1, 9), "dim")
    vocabulary = data.draw(st.integers(1, 40), "vocabulary")
    sizes = tiles.Chunks(data.draw(st.integers(1, 17)), data.draw(st.integers(1, 17)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    hidden = torch.randn(tokens, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, dim, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    share = data.draw(st.sampled_from((0.0, 0.5, 1.0)), "ignored")
    targets[torch.rand(tokens, generator=generator) < share] = -100
    options = {
        "label_smoothing": data.draw(st.sampled_from((0.0, 0.1))),
        "softcap": data.draw(st.sampled_from((None, 2.0))),
        "z_loss": data.draw(st.sampled_from((0.0, 0.1))),
        "reduction": data.draw(st.sampled_from(REDUCTIONS)),
    }
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "tile_sizes", lambda problem: sizes)
        patch.setattr(whole_rows, "rows_at_once", lambda problem: sizes.tokens)
        if not data.draw(st.booleans(), "in one pass"):
            patch.setattr(assemble, "at_once", lambda problem, backend: False)
        check(oracle, leaves, targets, options)


@pytest.mark.parametrize(
    ("batch", "dim", "vocabulary"), [((), 3, 5), ((1,), 1, 1), ((1, 1), 8, 2), ((2, 3, 4), 5, 600)]
)
def test_ranks_and_least_sizes(problem, oracle, batch, dim, vocabulary):
    hidden, weight, bias, targets = problem(*batch, dim=dim, vocabulary=vocabulary, ignored=0.0)
    for reduction in REDUCTIONS:
        check(oracle, (hidden, weight, bias), targets, {"reduction": reduction})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_targets_of_any_integer_type(problem, oracle, dtype):
    hidden, weight, bias, targets = problem(12, vocabulary=100, ignored=0.0)
    check(oracle, (hidden, weight, bias), targets.to(dtype), {"ignore_index": 100})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("ignore_index", [-100, -1000])
def test_next_token_with_targets_that_cannot_hold_ignore_index(
    problem, oracle, dtype, ignore_index
):
    hidden, weight, bias, targets = problem(2, 9, vocabulary=256, ignored=0.0)
    options = {"shift": True, "ignore_index": ignore_index}
    check(oracle, (hidden, weight, bias), (targets % 128).to(dtype), options)
    if dtype == torch.uint8:
        check(oracle, (hidden, weight, bias), targets.to(dtype), options)


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"exact": False}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_whole_tile_of_columns_is_masked(problem, oracle, options, dtype):
    """A bias of −∞ for what pads the vocabulary."""
    hidden, weight, bias, targets = problem(6, dim=4, vocabulary=4200, dtype=dtype)
    with torch.no_grad():
        bias[4000:] = -torch.inf
    tolerance = 1e-10 if dtype == torch.float64 else 1e-2
    leaves = (hidden, weight, bias)
    check(oracle, leaves, targets % 4000, {**options, "ignore_index": 5}, rtol=tolerance)


def test_inputs_of_any_strides(problem, oracle):
    hidden, weight, bias, targets = problem(6, 7, dim=10, vocabulary=40)
    turned = hidden.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    table = weight.detach().T.contiguous().T.requires_grad_()
    every = torch.randn(80, dtype=torch.float64)[::2].requires_grad_()
    check(oracle, (turned, table, every), targets.T.contiguous().T, {"label_smoothing": 0.1})
    assert bias.shape == every.shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.0}])
def test_without_targets_loss_and_gradients_are_zero(problem, reduction, options):
    hidden, weight, bias, targets = problem(2, 5)
    targets.fill_(-100)
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction, **options)
    loss.sum().backward()
    for x in (loss, hidden.grad, weight.grad, bias.grad):
        assert x.eq(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_of_zero_leave_no_mean(problem, smoothing):
    hidden, weight, _, targets = problem(5)
    nothing = torch.ones(301)
    nothing[targets.clamp(min=0)] = 0.0
    loss = linear_cross_entropy(
        hidden, weight, targets, weight_per_class=nothing, label_smoothing=smoothing
    )
    loss.backward()
    assert loss == 0
    assert weight.grad.eq(0).all()


@pytest.mark.parametrize("length", [1, 2])
def test_a_sequence_of_one_token_predicts_nothing(problem, length):
    hidden, weight, _, targets = problem(3, length, ignored=0.0)
    each = linear_cross_entropy(hidden, weight, targets, shift=True, reduction="none")
    assert each.shape == (3, length - 1)
    assert linear_cross_entropy(hidden, weight, targets, shift=True).eq(0) == (length == 1)


def test_ignored_tokens_are_not_computed(problem):
    """NaN in their hidden states reaches nothing but what is theirs, and that is 0."""
    hidden, weight, _, targets = problem(4, 200)
    poisoned = hidden.detach().masked_fill((targets == -100)[..., None], torch.nan)
    clean = hidden.detach().masked_fill((targets == -100)[..., None], 0.0)
    results = []
    for x in (poisoned.requires_grad_(), clean.requires_grad_()):
        loss = linear_cross_entropy(x, weight, targets)
        results.append((loss, *torch.autograd.grad(loss, (x, weight))))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_large_logits_do_not_overflow(oracle):
    hidden = torch.tensor([[300.0, -300.0]], requires_grad=True)
    weight = torch.tensor([[300.0, 0.0], [0.0, 300.0], [200.0, 0.0]], requires_grad=True)
    check(oracle, (hidden, weight, None), torch.tensor([2]), {}, rtol=1e-6)


def test_only_the_gradients_that_are_needed(problem, monkeypatch):
    asked = []
    gradients = reference.gradients
    monkeypatch.setattr(assemble, "at_once", lambda problem, backend: False)

    def spy(problem, logsumexp, live, upstream, needs):
        asked.append(tuple(needs))
        return gradients(problem, logsumexp, live, upstream, needs)

    monkeypatch.setattr(reference, "gradients", spy)
    hidden, weight, bias, targets = problem(6)
    loss = linear_cross_entropy(hidden, weight.detach(), targets, bias=bias)
    (only,) = torch.autograd.grad(loss, hidden)
    loss = linear_cross_entropy(hidden.detach(), weight, targets, bias=bias.detach())
    torch.autograd.grad(loss, weight)
    assert asked == [(True, False, True), (False, True, False)]
    assert only.abs().sum() > 0


def test_in_one_pass_only_the_gradients_that_are_needed(problem, monkeypatch):
    asked = []
    at_once = reference.loss_and_gradients

    def spy(problem, factors, needs):
        asked.append(tuple(needs))
        return at_once(problem, factors, needs)

    monkeypatch.setattr(reference, "loss_and_gradients", spy)
    hidden, weight, bias, targets = problem(6)
    linear_cross_entropy(hidden, weight.detach(), targets, bias=bias).backward()
    linear_cross_entropy(hidden.detach(), weight, targets, bias=bias.detach()).backward()
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    assert asked == [(True, False, True), (False, True, False)]
