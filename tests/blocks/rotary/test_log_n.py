"""log n scaling: 1 within the trained length (post hoc), ln n / ln L beyond."""

import math

import pytest
import torch

from ropewalk.blocks.rotary import LogN
from ropewalk.kernels.rotary_attention.protocols import QueryScale


def test_post_hoc_changes_nothing_within_the_trained_length():
    factors = LogN(512)(torch.arange(4096))
    assert torch.equal(factors[:512], torch.ones(512))
    assert (factors[512:] > 1).all()
    assert factors[4095] == pytest.approx(math.log(4096) / math.log(512))
    assert factors.dtype == torch.float32


def test_pretrained_is_the_logarithm_throughout():
    positions = torch.tensor([[0, 1], [22, 511]])
    factors = LogN(512, clamp=False)(positions)
    expected = (positions + 1.0).log() / math.log(512)
    torch.testing.assert_close(factors, expected)
    assert factors[0, 0] == 0


@pytest.mark.parametrize("clamp", [True, False])
def test_padding_may_have_negative_positions(clamp):
    log_n = LogN(8, clamp=clamp)
    factors = log_n(torch.tensor([-5, -1, 0]))
    assert torch.equal(factors, log_n(torch.zeros(3, dtype=torch.int64)))


def test_float_positions_and_their_precision():
    log_n = LogN(8)
    assert log_n(torch.tensor([100.0])).dtype == torch.float32
    assert log_n(torch.tensor([100.0], dtype=torch.float64)).dtype == torch.float64
    assert log_n(torch.tensor([100.0])) == pytest.approx(math.log(101) / math.log(8))


def test_protocol_and_compile():
    log_n = LogN(8)
    assert isinstance(log_n, QueryScale)
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(log_n.__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.arange(20)), log_n(torch.arange(20)))


@pytest.mark.parametrize("length", [1, 0, -4])
def test_bad_length(length):
    with pytest.raises(ValueError, match=f"LogN.length: expected an integer ≥ 2, got {length}"):
        LogN(length)
