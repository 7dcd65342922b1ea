"""What `exact=False` leaves out, and that it leaves out nothing else."""

import pytest
import torch

from ropewalk.kernels.linear_cross_entropy import linear_cross_entropy, op
from ropewalk.kernels.linear_cross_entropy.filter import (
    FILTER_COLUMNS,
    FILTER_TOKENS,
    log_resolution,
    map_shape,
)
from ropewalk.kernels.linear_cross_entropy.problem import ELSEWHERE, IGNORED

TOKENS, VOCABULARY, DIM = 3 * FILTER_TOKENS + 5, 5 * FILTER_COLUMNS + 3, 24


@pytest.fixture
def peaked():
    """Tokens whose probability lies in few tiles: those of a block agree on its columns."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(DIM)[:6] * 30
    weight = 0.1 * torch.randn(VOCABULARY, DIM, generator=generator)
    weight += directions[torch.arange(VOCABULARY) // FILTER_COLUMNS]
    block = torch.arange(TOKENS) // FILTER_TOKENS
    hidden = 0.02 * torch.randn(TOKENS, DIM, generator=generator) + torch.eye(DIM)[block]
    targets = block * FILTER_COLUMNS + torch.randint(FILTER_COLUMNS, (TOKENS,), generator=generator)
    targets[::5] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def live_by_definition(hidden, weight, codes):
    """A tile counts if a token that counts has a probability or its target in it."""
    probabilities = (hidden.double() @ weight.double().T).softmax(-1)
    counts = probabilities > torch.tensor(log_resolution(hidden.dtype)).double().exp()
    rows = (codes >= 0).nonzero()[:, 0]
    counts[rows, codes[rows]] = True
    counts[codes == IGNORED] = False
    expected = torch.zeros(map_shape(TOKENS, VOCABULARY), dtype=torch.uint8)
    for token, column in counts.nonzero().tolist():
        expected[token // FILTER_TOKENS, column // FILTER_COLUMNS] = 1
    return expected


def test_the_map_of_live_tiles(peaked):
    hidden, weight, targets = peaked
    codes = torch.where(targets == -100, IGNORED, targets)
    codes[7] = ELSEWHERE
    *_, live = op.vocabulary_statistics_op(
        hidden, weight, codes, None, None, 1.0, None, False, "reference"
    )
    expected = live_by_definition(hidden.detach(), weight.detach(), codes)
    assert 0 < expected.sum() < expected.numel()
    torch.testing.assert_close(live, expected)


def test_dead_tiles_are_not_computed(peaked):
    """Their rows of weights are poisoned between forward and backward and reach nothing."""
    hidden, weight, targets = peaked
    loss = linear_cross_entropy(hidden, weight, targets, exact=False)
    with torch.no_grad():
        weight.data[4 * FILTER_COLUMNS : 5 * FILTER_COLUMNS] = torch.nan
    for grad in torch.autograd.grad(loss, (hidden, weight)):
        assert grad.isfinite().all()


def test_what_is_left_out_is_below_the_resolution(peaked):
    hidden, weight, targets = peaked
    results = []
    for exact in (True, False):
        loss = linear_cross_entropy(hidden, weight, targets, exact=exact, reduction="sum")
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    (loss, *gradients), (near, *near_gradients) = results
    torch.testing.assert_close(near, loss)
    resolution = torch.finfo(torch.float32).eps / 32
    least = resolution * VOCABULARY * weight.detach().abs().max()
    assert (gradients[0] - near_gradients[0]).abs().max() <= least
    assert (gradients[1] - near_gradients[1]).abs().max() <= resolution * TOKENS * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flat_distribution_keeps_the_tiles_of_targets_only(dtype):
    """Probabilities of 1/V are below bfloat16's resolution and far above float32's."""
    hidden = torch.zeros(8, 4, dtype=dtype)
    weight = torch.ones(32 * FILTER_COLUMNS, 4, dtype=dtype)
    codes = torch.tensor([3, 3, 300, 300, 300, IGNORED, ELSEWHERE, 3])
    *_, live = op.vocabulary_statistics_op(
        hidden, weight, codes, None, None, 1.0, None, False, "reference"
    )
    assert live.sum() == (32 if dtype == torch.float32 else 2)


def test_label_smoothing_leaves_nothing_out(peaked):
    hidden, weight, targets = peaked
    gradients = []
    for exact in (True, False):
        loss = linear_cross_entropy(hidden, weight, targets, label_smoothing=0.1, exact=exact)
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_what_is_not_a_number_stays_visible(peaked):
    hidden, weight, targets = peaked
    with torch.no_grad():
        weight[-1] = torch.nan
    loss = linear_cross_entropy(hidden, weight, targets, exact=False)
    loss.backward()
    assert loss.isnan()
    assert hidden.grad[targets != -100].isnan().all()
