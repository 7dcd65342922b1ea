"""Rows of a batch that see different numbers of keys: what lies beyond them may be anything."""

import pytest
import torch

from ropewalk.blocks.rotary import RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention

ROTARY = RotaryEmbedding(8)
LENGTHS = torch.tensor([6, 4, 0, 12])
MASK = torch.rand(4, 4, 1, 12, generator=torch.Generator().manual_seed(3)) < 0.7
CASES = {
    "reference": ("reference", {}),
    "flash": ("flash", {}),
    "auto": ("auto", {}),
    "softcap": ("auto", {"softcap": 2.0}),
    "mask": ("auto", {"attention_mask": MASK}),
    "mask of all rows": ("reference", {"attention_mask": MASK[:1, :1]}),
    "bias": ("auto", {"attention_mask": torch.zeros(MASK.shape).masked_fill(~MASK, -1e4)}),
    "sinks": ("reference", {"sinks": torch.arange(4.0, dtype=torch.float64)}),
}


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_what_a_row_does_not_have_is_not_read(oracle, inputs, rule, case, queries):
    """The slots of a cache that nobody has filled are whatever `torch.empty` found."""
    backend, options = CASES[case]
    options = {"rotary": ROTARY, "key_lengths": LENGTHS, **options}
    clean = inputs(batch=4, queries=queries, keys=12).make(grad=True)
    missing = torch.arange(12) >= LENGTHS[:, None]
    query, *cache = (x.detach().clone() for x in clean)
    for x, garbage in zip(cache, (torch.nan, torch.inf), strict=True):
        x.masked_fill_(missing[:, None, :, None], garbage)
    dirty = [x.requires_grad_() for x in (query, *cache)]
    got, lse = rotary_attention(
        *dirty, distance=rule[0], backend=backend, return_logsumexp=True, **options
    )
    expected, expected_lse = oracle(*clean, relative=rule[1], **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-11)
    gradients = torch.autograd.grad(got.square().sum(), dirty)
    wanted = torch.autograd.grad(expected.square().sum(), clean)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for gradient in gradients[1:]:
        assert (gradient.movedim(2, 1)[missing] == 0).all()


@pytest.mark.parametrize("like", [(1, 1, 1), (4, 1, 3), (1, 4, 3), (4, 4, 1)], ids=str)
@pytest.mark.parametrize("additive", [False, True])
def test_masks_and_lengths_hide_together(oracle, inputs, rule, like, additive):
    mask = torch.rand(*like, 12, generator=torch.Generator().manual_seed(3)) < 0.7
    if additive:
        mask = torch.randn(mask.shape).double().masked_fill_(~mask, -torch.inf)
    # Two rows that follow one another, and two that do not, share a problem.
    for lengths in ([5, 5, 0, 12], [5, 12, 5, 7]):
        options = {"attention_mask": mask, "key_lengths": torch.tensor(lengths), "rotary": ROTARY}
        tensors = inputs(batch=4, queries=3, keys=12).make(grad=True)
        got = rotary_attention(*tensors, distance=rule[0], **options)
        expected, _ = oracle(*tensors, relative=rule[1], **options)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
        for a, b in zip(
            torch.autograd.grad(got.square().sum(), tensors),
            torch.autograd.grad(expected.square().sum(), tensors),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
