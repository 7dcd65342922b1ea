"""No rows, no queries or no keys: zeros of the right shape, and gradients of zeros."""

from itertools import product

import pytest
import torch

from ropewalk.blocks.rotary import LogN, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention

OPTIONS = {
    "nothing": lambda batch, queries, keys: {},
    "key_lengths": lambda batch, queries, keys: {"key_lengths": torch.full((batch,), keys)},
    "positions": lambda batch, queries, keys: {
        "query_positions": torch.arange(queries).expand(batch, -1),
        "key_positions": torch.arange(keys).expand(batch, -1),
    },
    "positions and lengths": lambda batch, queries, keys: {
        "query_positions": torch.arange(queries).expand(batch, -1),
        "key_lengths": torch.full((batch,), keys),
    },
    "log_n": lambda batch, queries, keys: {"log_n": LogN(4)},
    "mask": lambda batch, queries, keys: {
        "attention_mask": torch.ones(batch, 4, queries, keys, dtype=torch.bool),
    },
    "mask and lengths": lambda batch, queries, keys: {
        "attention_mask": torch.zeros(batch, 1, 1, keys),
        "key_lengths": torch.full((batch,), keys),
    },
    "softcap and lengths": lambda batch, queries, keys: {
        "softcap": 2.0,
        "key_lengths": torch.full((batch,), keys),
    },
}


@pytest.mark.parametrize("without", ["batch", "queries", "keys"])
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        pair
        for pair in product(("reference", "flash", "auto"), OPTIONS)
        # Flash takes neither masks nor softcap on a CPU.
        if pair[0] != "flash" or not pair[1].startswith(("mask", "softcap"))
    ],
)
def test_nothing_gives_zeros(inputs, rule, backend, options, without):
    sizes = {"batch": 2, "queries": 3, "keys": 5, without: 0}
    sinks = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    leaves = (*inputs(**sizes).make(grad=True), sinks)
    settings = {"rotary": RotaryEmbedding(8), "distance": rule[0], "backend": backend}
    settings |= OPTIONS[options](*sizes.values())
    for extras in ({}, {"sinks": sinks}):
        output, lse = rotary_attention(*leaves[:3], return_logsumexp=True, **settings, **extras)
        assert output.shape == leaves[0].shape
        assert (output == 0).all()
        # A sink of 0 alone has a logsumexp of 0.
        assert (lse == (0 if extras else -torch.inf)).all()
        wanted = leaves if extras else leaves[:3]
        for gradient, x in zip(torch.autograd.grad(output.sum(), wanted), wanted, strict=True):
            assert gradient.shape == x.shape
            assert (gradient == 0).all()
