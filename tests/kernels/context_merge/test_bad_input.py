"""What is refused says what was expected, what came and how to mend it, before any work is done."""

import math
import re

import pytest
import torch

from ropewalk.kernels.context_merge import context_merge, custom_pooling, op, pool_with

LOGITS, UNCONDITIONAL = torch.zeros(2, 3, 7), torch.zeros(2, 7)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Nothing is computed before the refusal."""

    def work(*_):
        raise AssertionError("the operator ran")

    monkeypatch.setattr(op, "implementation", work)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, "logits: expected a tensor, got list", {"logits": [[0.0]]}),
        (TypeError, "unconditional: expected a tensor, got NoneType", {"unconditional": None}),
        (ValueError, "logits: expected a floating-point dtype, got", {"logits": LOGITS.long()}),
        (
            ValueError,
            "logits: expected (..., contexts, vocabulary), got (7,); a single context needs",
            {"logits": torch.zeros(7)},
        ),
        (
            ValueError,
            "logits: expected at least one context, got (2, 0, 7); without any, `unconditional`",
            {"logits": LOGITS[:, :0]},
        ),
        (ValueError, "logits: expected a vocabulary, got (2, 3, 0)", {"logits": LOGITS[..., :0]}),
        (
            ValueError,
            "unconditional: expected (2, 7), that of logits without its contexts, got (7,)",
            {"unconditional": UNCONDITIONAL[0]},
        ),
        (
            ValueError,
            "unconditional: expected torch.float32 on cpu as logits is, got torch.float64 on cpu; ",
            {"unconditional": UNCONDITIONAL.double()},
        ),
        (ValueError, "beta: expected a finite number of at least −1, got -1.5", {"beta": -1.5}),
        (ValueError, "beta: expected a finite number of at least −1, got nan", {"beta": math.nan}),
        (TypeError, "beta: expected a number, got str", {"beta": "0.25"}),
        (ValueError, "eta: expected a finite number of at least 0, in nats, got -", {"eta": -0.1}),
        (ValueError, "top_p: expected 0 < top_p ≤ 1, where 1 keeps all, got 0", {"top_p": 0}),
        (ValueError, "top_p: expected 0 < top_p ≤ 1, where 1 keeps all, got 1.01", {"top_p": 1.01}),
        (ValueError, "pooling: expected one of min_entropy, mean, max, ", {"pooling": "median"}),
        (TypeError, "renormalise_entropy: expected True or False", {"renormalise_entropy": 1}),
        (TypeError, "previous: expected a tensor or None, got int", {"previous": 0}),
        (
            ValueError,
            "previous: expected integers, −1 for none, got torch.float32; use .long()",
            {"previous": torch.zeros(2)},
        ),
        (
            ValueError,
            "previous: expected (2,) on cpu, a context for each question, got (3,) on cpu",
            {"previous": torch.zeros(3, dtype=torch.int64)},
        ),
        (TypeError, "prior: expected a tensor or None, got list", {"prior": [1.0, 1.0, 1.0]}),
        (
            ValueError,
            "prior: expected floating-point weights (2, 3), or (3,) for all questions alike, got",
            {"prior": torch.ones(4)},
        ),
        (ValueError, "(3,) torch.int64", {"prior": torch.ones(3, dtype=torch.int64)}),
        (ValueError, "(1,) torch.float32", {"prior": torch.ones(1)}),
        (
            ValueError,
            "prior: expected finite weights of at least 0, not all of them 0, got [1.0, -1.0, 1.0]",
            {"prior": torch.tensor([1.0, -1.0, 1.0])},
        ),
        (ValueError, "not all of them 0", {"prior": torch.tensor([[1.0, 1.0, 1.0], [0, 0, 0]])}),
        (ValueError, "prior: expected finite", {"prior": torch.tensor([1.0, math.nan, 1.0])}),
        (ValueError, "backend: expected one of auto, reference, triton", {"backend": "cuda"}),
    ],
)  # fmt: skip
def test_refusals(error, message, given):
    arguments = {"logits": LOGITS, "unconditional": UNCONDITIONAL, **given}
    with pytest.raises(error, match=re.escape(message)):
        context_merge(arguments.pop("logits"), arguments.pop("unconditional"), **arguments)


@pytest.mark.parametrize(
    ("error", "message", "function"),
    [
        (TypeError, "pooling: expected it to return a tensor, got int", lambda rows, _: 1),
        (
            ValueError,
            "pooling: expected it to return (2, 7), one row a question, got (2, 3)",
            lambda rows, entropies: entropies,
        ),
    ],
)
def test_a_pooling_function_that_gives_something_else(error, message, function):
    with pytest.raises(error, match=re.escape(message)):
        pool_with(
            function, LOGITS, UNCONDITIONAL, beta=0.0, eta=0.0, top_p=0.9,
            renormalise_entropy=False, previous=None,
        )  # fmt: skip
    with pytest.raises(ValueError, match="top_p: expected"):
        custom_pooling.pool_with(
            function, LOGITS, UNCONDITIONAL, beta=0.0, eta=0.0, top_p=2.0,
            renormalise_entropy=False, previous=None,
        )  # fmt: skip
