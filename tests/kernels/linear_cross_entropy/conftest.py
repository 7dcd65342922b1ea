"""The oracle: logits in float64, held as a whole, and torch's own cross-entropy of them."""

import pytest
import torch
import torch.nn.functional as F


def materialised(
    hidden, weight, targets, *, bias=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
    softcap=None, logit_scale=1.0, weight_per_class=None, reduction="mean", return_logsumexp=False,
    shift=False,
):  # fmt: skip
    """What `linear_cross_entropy` means, from logits that autograd differentiates."""
    if shift:
        hidden, targets = hidden[..., :-1, :], targets[..., 1:]
    logits = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    flat = targets.reshape(-1).long()
    logits = logits.reshape(-1, logits.shape[-1])
    counted = flat != ignore_index
    logsumexp = logits.logsumexp(-1) * counted
    if not counted.any():
        loss = logits.sum() * 0.0 if reduction != "none" else logits.sum(-1) * 0.0
    else:
        classes = None if weight_per_class is None else weight_per_class.to(logits.dtype)
        loss = F.cross_entropy(
            logits, flat, classes, ignore_index=ignore_index, label_smoothing=label_smoothing,
            reduction=reduction,
        )  # fmt: skip
        square = z_loss * logsumexp.square()
        loss = loss + {
            "none": square, "sum": square.sum(), "mean": square.sum() / counted.sum()
        }[reduction]  # fmt: skip
    loss = loss.view(targets.shape) if reduction == "none" else loss
    return (loss, logsumexp.view(targets.shape)) if return_logsumexp else loss


@pytest.fixture(scope="session")
def oracle():
    """`materialised`."""
    return materialised


@pytest.fixture
def problem():
    """`problem(*batch, dim=…, vocabulary=…)`: hidden, weight, bias that need gradients; targets."""

    def make(*batch, dim=17, vocabulary=301, dtype=torch.float64, ignored=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape, scale=1.0):
            drawn = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return drawn.to(dtype).requires_grad_()

        hidden, weight = draw(*batch, dim), draw(vocabulary, dim, scale=dim**-0.5)
        bias = draw(vocabulary)
        targets = torch.randint(vocabulary, batch, generator=generator)
        targets[torch.rand(batch, generator=generator) < ignored] = -100
        return hidden, weight, bias, targets

    return make
