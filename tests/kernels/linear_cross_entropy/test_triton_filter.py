"""Triton's kernels with `exact=False`: the map, what it leaves out, and that nobody looks there."""

from dataclasses import replace

import pytest
import torch
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

TOKENS, DIM, VOCABULARY = 2 * FILTER_TOKENS + 9, 12, 4 * FILTER_COLUMNS + 70
NEEDS = Needs(True, True, True)


BOTH = pytest.mark.parametrize("tile", [(64, 128), (128, 256)], ids=str, indirect=True)


@pytest.fixture(autouse=True)
def tile(request, monkeypatch):
    """Tiles of the filter's size or of a part of it, so that its map is quickly interpreted."""
    rows, columns = getattr(request, "param", (FILTER_TOKENS, FILTER_COLUMNS))
    large = configurations.Configuration(rows, columns, 64, 4, 1)
    monkeypatch.setattr(configurations, "INTERPRETED", large)


def peaked(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Problem, Upstream]:
    """Even blocks of tokens like even tiles of columns and odd blocks odd ones, nobody the fourth.

    Targets of the third block are ignored or lie elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=generator)
    weight = torch.randn(VOCABULARY, DIM, generator=generator) / 4
    block, tile = torch.arange(TOKENS) // FILTER_TOKENS, torch.arange(VOCABULARY) // FILTER_COLUMNS
    hidden[:, 0] = 5.0 - 10.0 * (block % 2)
    weight[:, 0] = 5.0 - 10.0 * (tile % 2)
    bias = torch.zeros(VOCABULARY)
    bias[tile == 3] = -100.0
    targets = torch.randint(FILTER_COLUMNS, (TOKENS,), generator=generator)
    targets += block % 2 * FILTER_COLUMNS
    targets[::3] = ELSEWHERE
    targets[1::3] = IGNORED
    targets[block == 2] = ELSEWHERE
    targets[-1] = IGNORED
    # Its target makes a tile live where nothing else does.
    targets[5] = 3 * FILTER_COLUMNS + 17
    p = Problem(
        hidden.to(device, dtype), weight.to(device, dtype), targets.to(device),
        bias.to(device, dtype), None, 1.0, None, False,
    )  # fmt: skip
    upstream = [torch.randn(TOKENS, generator=generator).to(device) for _ in range(2)]
    return p, Upstream(*upstream, None)


def live_by_definition(p: Problem, logsumexp: Tensor) -> Tensor:
    """One tile after another, from logits in float64."""
    assert p.bias is not None
    logits = p.hidden.double() @ p.weight.double().T + p.bias.double()
    resolved = (logits - logsumexp.double()[:, None]).exp() > torch.finfo(p.hidden.dtype).eps / 32
    live = []
    for first in range(0, TOKENS, FILTER_TOKENS):
        codes = p.targets[first : first + FILTER_TOKENS]
        counts = codes != IGNORED
        for column in range(0, VOCABULARY, FILTER_COLUMNS):
            tile = resolved[first : first + FILTER_TOKENS, column : column + FILTER_COLUMNS]
            held = (codes >= column) & (codes < column + FILTER_COLUMNS)
            live.append((tile[counts].any() | held.any()).item())
    return torch.tensor(live, dtype=torch.uint8).view(-1, -(-VOCABULARY // FILTER_COLUMNS))


@BOTH
def test_the_map_is_what_it_is_said_to_be(kernel_device, uninitialised):
    p, _ = peaked(kernel_device)
    found = triton.statistics(p)
    expected = live_by_definition(p, found.logsumexp)
    assert expected.tolist() == [[1, 0, 1, 1, 1], [0, 1, 0, 0, 0], [1, 0, 1, 0, 1]]
    assert found.live is not None
    torch.testing.assert_close(found.live.cpu(), expected)
    exact = triton.statistics(replace(p, exact=True))
    assert exact.live is None
    torch.testing.assert_close(exact[:2], found[:2], rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("workspace", [chunks.WORKSPACE, 1], ids=["one chunk", "chunks"])
def test_dead_tiles_are_skipped(workspace, kernel_device, uninitialised, monkeypatch):
    """What only they would need is poisoned after the forward; their gradient is never written."""
    monkeypatch.setattr(chunks, "WORKSPACE", workspace)
    p, upstream = peaked(kernel_device)
    p.targets[5] = IGNORED  # now the fourth tile of columns is dead for all
    found = triton.statistics(p)
    assert found.live is not None
    dead = slice(3 * FILTER_COLUMNS, 4 * FILTER_COLUMNS)
    assert not found.live[:, 3].any()
    exact = replace(p, exact=True)
    expected = triton.gradients(exact, found.logsumexp, None, upstream, NEEDS)
    p.weight[dead] = torch.nan
    gradients = triton.gradients(p, found.logsumexp, found.live, upstream, NEEDS)
    for grad in gradients[1:]:
        assert grad is not None
        assert (grad[dead] == 0).all()
    # Skipped logits have probabilities of e⁻²⁵ and e⁻¹⁰⁰.
    for ours, full in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-5)


def test_a_map_without_a_live_tile(kernel_device, uninitialised):
    p, upstream = peaked(kernel_device)
    found = triton.statistics(p)
    nothing = torch.zeros_like(found.live)
    p.hidden.fill_(torch.nan)
    for grad in triton.gradients(p, found.logsumexp, nothing, upstream, NEEDS):
        assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_left_out_is_below_the_resolution(dtype, kernel_device, uninitialised):
    """A token's gradient loses at most the resolution for each column that is skipped."""
    p, upstream = peaked(kernel_device, dtype)
    p.weight[:, 0] *= 0.15 if dtype == torch.float16 else 0.3  # nearer to the threshold
    found = triton.statistics(p)
    assert found.live is not None
    assert not found.live.all()
    ours = triton.gradients(p, found.logsumexp, found.live, upstream, NEEDS)
    full = triton.gradients(replace(p, exact=True), found.logsumexp, None, upstream, NEEDS)
    resolution = torch.finfo(dtype).eps / 32
    lost = upstream.logsumexp.abs().max() * resolution
    rounding = 2 * torch.finfo(dtype).eps
    for terms, x, y, of in (
        (VOCABULARY, ours[0], full[0], p.weight), (TOKENS, ours[1], full[1], p.hidden),
    ):  # fmt: skip
        assert x is not None
        assert y is not None
        allowed = terms * lost * of.abs().max().float() + rounding * y.abs().max().float()
        assert (x.float() - y.float()).abs().max() <= allowed
    assert (ours[1] != full[1]).any()


def test_a_logit_that_is_no_number_keeps_all_tiles(kernel_device):
    """What went wrong is not hidden by skipping it."""
    p, upstream = peaked(kernel_device)
    p.weight[3 * FILTER_COLUMNS + 7, 2] = torch.nan
    found = triton.statistics(p)
    assert found.live is not None
    assert found.live.all()
    _, grad, _ = triton.gradients(p, found.logsumexp, found.live, upstream, NEEDS)
    assert grad is not None
    assert grad[3 * FILTER_COLUMNS + 7].isnan().all()
