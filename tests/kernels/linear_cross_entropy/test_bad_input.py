"""What is refused says what was expected, what came and how to mend it, before any work is done."""

import re

import pytest
import torch

from ropewalk.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    op,
    vocabulary_parallel_linear_cross_entropy,
)

HIDDEN, WEIGHT = torch.zeros(2, 3, 4), torch.zeros(10, 4)
TARGETS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Nothing is computed before the refusal."""

    def work(*_):
        raise AssertionError("the operator ran")

    monkeypatch.setattr(op, "implementation", work)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, "hidden: expected a tensor, got list", {"hidden": [[0.0]]}),
        (TypeError, "targets: expected a tensor, got int", {"targets": 3}),
        (TypeError, "bias: expected a tensor or None, got float", {"bias": 1.0}),
        (ValueError, "hidden: expected (..., dim), got a scalar", {"hidden": torch.tensor(1.0)}),
        (ValueError, "weight: expected (vocabulary, dim), got (4,)", {"weight": torch.zeros(4)}),
        (ValueError, "weight: expected (vocabulary, dim), got (0, 4)", {"weight": WEIGHT[:0]}),
        (
            ValueError,
            "hidden: expected a last dimension of 10, the weight's, got 4; weight is (vocabulary, ",
            {"weight": WEIGHT.T},
        ),
        (
            ValueError,
            "targets: expected (2, 3), one for each hidden state, got (6,)",
            {"targets": TARGETS.view(6)},
        ),
        (ValueError, "targets: expected integer indices", {"targets": TARGETS.float()}),
        (ValueError, "targets: expected integer indices", {"targets": TARGETS.bool()}),
        (
            ValueError,
            "targets: expected indices from 0 to 9 or ignore_index = -100, got 10 (1 such)",
            {"targets": torch.tensor([[0, 1, 9], [10, 0, -100]])},
        ),
        (ValueError, "got -1 (2 such)", {"targets": torch.tensor([[0, -1, 9], [-1, 0, -100]])}),
        (ValueError, "got -100 (1 such)", {
            "targets": torch.tensor([[0, 1, 9], [-100, 0, -1]]), "ignore_index": -1,
        }),
        (ValueError, "got -2 (6 such)", {"targets": TARGETS - 2}),
        (ValueError, "bias: expected (10,), one for each row", {"bias": torch.zeros(4)}),
        (ValueError, "bias: expected torch.float32 as hidden is", {"bias": torch.zeros(10).half()}),
        (ValueError, "weight: expected torch.float32 as hidden is, got torch.bfloat16; cast one of "
         "them, or run under torch.autocast", {"weight": WEIGHT.bfloat16()}),
        (ValueError, "hidden: expected float16, bfloat16", {
            "hidden": HIDDEN.cfloat(), "weight": WEIGHT.cfloat(),
        }),
        (ValueError, "weight: expected on cpu as hidden is, got meta", {
            "weight": WEIGHT.to("meta"),
        }),
        (ValueError, "softcap: expected a positive number", {"softcap": 0.0}),
        (ValueError, "softcap: expected a positive number", {"softcap": -30.0}),
        (ValueError, "softcap: expected a positive number", {"softcap": float("nan")}),
        (TypeError, "softcap: expected a number, got str", {"softcap": "30"}),
        (ValueError, "label_smoothing: expected 0 ≤ ε < 1, got 1.0", {"label_smoothing": 1.0}),
        (ValueError, "label_smoothing: expected 0 ≤ ε < 1, got -0.1", {"label_smoothing": -0.1}),
        (ValueError, "z_loss: expected a factor of at least 0", {"z_loss": -1e-4}),
        (ValueError, "z_loss: expected a factor of at least 0", {"z_loss": float("inf")}),
        (ValueError, "logit_scale: expected a finite number", {"logit_scale": float("nan")}),
        (TypeError, "logit_scale: expected a number, got Tensor; a learned factor can multiply "
         "hidden", {"logit_scale": torch.tensor(2.0)}),
        (TypeError, "ignore_index: expected an int, got float", {"ignore_index": -100.0}),
        (TypeError, "exact: expected True or False, got str", {"exact": "no"}),
        (TypeError, "softcap: expected a number, got bool", {"softcap": True}),
        (ValueError, "reduction: expected one of mean, sum, none, got 'avg'", {"reduction": "avg"}),
        (ValueError, "backend: expected one of auto, reference, triton", {"backend": "cuda"}),
        (TypeError, "weight_per_class: expected a tensor, got list", {"weight_per_class": [1.0]}),
        (ValueError, "weight_per_class: expected (10,)", {"weight_per_class": torch.ones(9)}),
        (ValueError, "weight_per_class: expected (10,)", {
            "weight_per_class": torch.ones(10, dtype=torch.int64),
        }),
        (ValueError, "weight_per_class: expected constants", {
            "weight_per_class": torch.ones(10, requires_grad=True),
        }),
        (ValueError, "weight_per_class: expected on cpu", {
            "weight_per_class": torch.ones(10, device="meta"),
        }),
        (ValueError, "hidden: expected (..., seq, dim) with at least one token for shift=True", {
            "hidden": torch.zeros(4), "targets": torch.tensor(0), "shift": True,
        }),
        (ValueError, "hidden: expected (..., seq, dim) with at least one token for shift=True", {
            "hidden": HIDDEN[:, :0], "targets": TARGETS[:, :0], "shift": True,
        }),
    ],
)  # fmt: skip
def test_is_refused(error, message, given):
    given = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS} | given
    with pytest.raises(error, match=re.escape(message)):
        linear_cross_entropy(**given)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="expected an initialised process group, got none"):
        vocabulary_parallel_linear_cross_entropy(HIDDEN, WEIGHT, TARGETS)
