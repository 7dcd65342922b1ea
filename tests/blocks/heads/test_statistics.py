"""Statistics of a head against the probabilities and cosines themselves, in float64."""

import math

import pytest
import torch

from ropewalk.blocks.heads import TiedEmbedding, head_statistics


def oracle(hidden, table, bias=None, logit_scale=1.0, softcap=None):
    logits = hidden.double().flatten(0, -2) @ table.double().mT
    logits = logit_scale * (logits + (0 if bias is None else bias.double()))
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    p = logits.softmax(-1)
    cosines = torch.nn.functional.normalize(table.double(), dim=-1)
    cosines = cosines @ cosines.mT
    different = ~torch.eye(len(table), dtype=torch.bool)
    return (
        float(torch.special.entr(p).sum(-1).mean()),
        float(p.amax(-1).mean()),
        float(cosines[different].mean()),
    )


@pytest.mark.parametrize("vocabulary", [2, 37, 4200])  # the last one takes two tiles
@pytest.mark.parametrize("shape", [(1,), (3, 7), (1500,)])
def test_statistics_are_those_of_the_whole_distribution(vocabulary, shape):
    torch.manual_seed(0)
    hidden, table = torch.randn(*shape, 12), torch.randn(vocabulary, 12) + 0.3
    bias = torch.randn(vocabulary)
    options = {"bias": bias, "logit_scale": 1.7, "softcap": 5.0}
    for given in ({}, options):
        got = head_statistics(hidden, table, **given)
        assert got == pytest.approx(oracle(hidden, table, **given), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    torch.manual_seed(0)
    hidden, table = torch.randn(9, 12).to(dtype), torch.randn(40, 12).to(dtype)
    assert head_statistics(hidden, table) == pytest.approx(oracle(hidden, table), rel=1e-4)


def test_a_uniform_head():
    got = head_statistics(torch.zeros(3, 4), torch.eye(4))
    assert got == pytest.approx((math.log(4), 0.25, 0.0))


def test_a_narrow_cone():
    assert head_statistics(torch.zeros(3, 4), torch.ones(9, 4)).anisotropy == pytest.approx(1.0)


def test_a_row_of_zeros_has_no_direction():
    table = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert head_statistics(torch.zeros(1, 2), table).anisotropy == pytest.approx(1 / 3)


def test_large_logits_do_not_overflow():
    got = head_statistics(torch.full((2, 3), 1e4), torch.eye(3)[:2])
    assert got[:2] == pytest.approx((math.log(2), 0.5))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("out", [slice(3, 9), slice(0, 4096), slice(4096, 4200), slice(0, 4199)])
def test_tokens_that_are_ruled_out(out, softcap):
    """Some of a tile of columns, the first tile, the last one, all but one token."""
    torch.manual_seed(0)
    hidden, table, bias = torch.randn(5, 12), torch.randn(4200, 12), torch.randn(4200)
    bias[out] = -torch.inf
    got = head_statistics(hidden, table, bias=bias, softcap=softcap)
    assert got == pytest.approx(oracle(hidden, table, bias, softcap=softcap), rel=1e-4, abs=1e-5)


def test_a_tied_head_predicts_itself_and_autocast_rounds_nothing():
    torch.manual_seed(0)
    head = TiedEmbedding(200, 64, init="inverse_sqrt")
    hidden = torch.nn.functional.rms_norm(head(torch.arange(200)), (64,))
    with torch.autocast("cpu", torch.bfloat16):
        got = head_statistics(hidden, head.output_matrix())
    assert got == pytest.approx(oracle(hidden.detach(), head.weight.detach()), rel=1e-4, abs=1e-6)
    assert got.top1_mass > 0.8
    assert got.entropy < 1.0


def test_a_single_row_has_no_other():
    assert math.isnan(head_statistics(torch.zeros(1, 2), torch.ones(1, 2)).anisotropy)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.zeros(3, 4), torch.zeros(5, 3)), {}, ValueError, r"expected \(..., 3\) as the tab"),
        ((torch.zeros(3, 4), torch.zeros(5)), {}, ValueError, r"expected \(vocabulary, dim\)"),
        ((torch.zeros(0, 4), torch.zeros(5, 4)), {}, ValueError, "one hidden state at least"),
        ((torch.zeros(3, 4).long(), torch.zeros(5, 4)), {}, ValueError, "floating-point dtype"),
        (([0.0], torch.zeros(5, 4)), {}, TypeError, "hidden: expected a tensor, got list"),
        ((torch.zeros(3, 4), torch.ones(5, 4)), {"softcap": 0.0}, ValueError, "softcap: expected"),
        ((torch.zeros(3, 4), torch.ones(5, 4)), {"bias": torch.ones(4)}, ValueError, r"\(5,\)"),
        ((torch.zeros(3, 4), torch.ones(5, 4)), {"logit_scale": "x"}, TypeError, "a finite number"),
        ((torch.zeros(3, 4), torch.ones(5, 4)), {"logit_scale": math.nan}, ValueError, "got nan"),
    ],
)
def test_bad_input(arguments, options, error, words):
    with pytest.raises(error, match=words):
        head_statistics(*arguments, **options)
