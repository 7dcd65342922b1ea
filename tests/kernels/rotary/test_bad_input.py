"""What `rotate_query_key` refuses: the error names what was expected, what came and the way out."""

import re

import pytest
import torch

from ropewalk.blocks.rotary import RotaryEmbedding
from ropewalk.kernels.rotary import rotate_query_key

QUERY, KEY = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
TABLE = torch.randn(5, 4)
GOOD = {"query": QUERY, "key": KEY, "cos": TABLE, "sin": TABLE}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "neox"}, ValueError, "layout: expected one of half, interleaved, got 'neox'"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of auto, reference, triton, got"),
        ({"query": QUERY[0]}, ValueError, "query: expected 4 dimensions .* got shape (4, 5, 8)"),
        ({"query": [1.0]}, TypeError, "query: expected a tensor, got list"),
        ({"key": KEY.long()}, TypeError, "key: expected float32, .* got torch.int64; cast it"),
        ({"key": KEY.half()}, ValueError, "the same dtype, got torch.float32 and torch.float16"),
        ({"key": KEY.to("meta")}, ValueError, "the same device, got cpu and meta"),
        ({"key": KEY[:1]}, ValueError, "the same batch size, got 2 and 1"),
        ({"key": KEY[..., :6]}, ValueError, "the same head_dim, got 8 and 6"),
        ({"key": KEY[:, :, :3]}, ValueError, "key: expected 5 tokens, .* got 3; pass key_cos"),
        ({"cos": TABLE.tolist()}, TypeError, "cos: expected a tensor, got list"),
        ({"cos": TABLE.bfloat16()}, TypeError, "cos: expected float32 or float64, got torch.bfl"),
        ({"sin": TABLE.long()}, TypeError, "sin: expected float32 or float64, got torch.int64"),
        ({"sin": TABLE.to("meta")}, ValueError, "sin: expected it on cpu, got meta; move it"),
        ({"sin": TABLE[:, :3]}, ValueError, "equal shapes, got (5, 4) and (5, 3)"),
        (
            {"cos": torch.randn(5, 8), "sin": torch.randn(5, 8)},
            ValueError,
            "1 to head_dim/2 = 4 angles .* got 8; pass one angle per pair, not per dimension",
        ),
        ({"cos": TABLE[:, :0], "sin": TABLE[:, :0]}, ValueError, "1 to head_dim/2 = 4 .* got 0;"),
        (
            {"cos": TABLE[:4], "sin": TABLE[:4]},
            ValueError,
            "cos: expected shape (5, pairs) or (2, 5, pairs), one row per token, got (4, 4)",
        ),
        (
            {"cos": torch.randn(3, 5, 4), "sin": torch.randn(3, 5, 4)},
            ValueError,
            "expected shape .* got (3, 5, 4)",
        ),
        (
            {"cos": torch.randn(2, 1, 5, 4), "sin": torch.randn(2, 1, 5, 4)},
            ValueError,
            "expected shape .* got (2, 1, 5, 4)",
        ),
        (
            {"cos": TABLE.clone().requires_grad_()},
            ValueError,
            "cos: expected no gradient to be needed, .* use ropewalk.kernels.rotary.rotate",
        ),
        ({"key_cos": TABLE}, ValueError, "key_cos and key_sin: expected both or neither, got one"),
        (
            {"key_cos": TABLE[:3], "key_sin": TABLE[:3]},
            ValueError,
            "key_cos: expected shape (5, pairs) .* got (3, 4)",
        ),
        (
            {"key_cos": TABLE[:, :2], "key_sin": TABLE[:, :2]},
            ValueError,
            "key_cos: expected 4 angles as the query has, got 2",
        ),
        (
            {"query_norm_weight": torch.ones(4, 8)},
            ValueError,
            "query_norm_weight: expected shape (8,), .* got (4, 8); a norm over all heads",
        ),
        ({"key_norm_weight": torch.ones(7)}, ValueError, "key_norm_weight: expected shape (8,)"),
        (
            {"key_norm_weight": torch.ones(8, dtype=torch.int32)},
            TypeError,
            "key_norm_weight: expected a floating-point tensor, got torch.int32",
        ),
        (
            {"query_norm_weight": torch.ones(8, device="meta")},
            ValueError,
            "query_norm_weight: expected it on cpu, got meta",
        ),
        ({"query_norm_weight": 1.0}, TypeError, "query_norm_weight: expected a tensor, got float"),
        ({"norm_eps": -1e-6}, ValueError, "norm_eps: expected a finite number of at least 0, got"),
        ({"norm_eps": float("nan")}, ValueError, "norm_eps: expected a finite number"),
        ({"norm_eps": "1e-6"}, TypeError, "norm_eps: expected a number, got str"),
    ],
    # Not the values: they may be random, and workers must agree on the names.
    ids=lambda x: x if isinstance(x, str) else "-".join(x) if isinstance(x, dict) else x.__name__,
)
def test_bad_input(change, error, message):
    pattern = ".*".join(re.escape(part.strip()) for part in message.split(".*"))
    with pytest.raises(error, match=pattern):
        rotate_query_key(**{**GOOD, **change})


def test_triton_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"'triton' cannot run: .* CUDA device, got cpu; move"):
        rotate_query_key(**GOOD, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "True")
    double = {name: x.double() for name, x in GOOD.items()}
    with pytest.raises(ValueError, match=r"'triton' cannot run: .* got float64"):
        rotate_query_key(**double, backend="triton")


def test_positions():
    rotary = RotaryEmbedding(8)
    with pytest.raises(TypeError, match="positions: expected a tensor, got list"):
        rotary.rotate_query_key(QUERY, KEY, [0, 1, 2, 3, 4])
    with pytest.raises(TypeError, match=r"positions: expected integers .* got torch\.float16"):
        rotary.rotate_query_key(QUERY, KEY, torch.arange(5).half())
    with pytest.raises(ValueError, match=r"positions: expected \(seq,\) or .* got \(4,\)"):
        rotary.rotate_query_key(QUERY, KEY, torch.arange(4))
    with pytest.raises(ValueError, match=r"positions: expected .* got \(3, 5\)"):
        rotary.rotate_query_key(QUERY, KEY, torch.arange(15).view(3, 5))
    with pytest.raises(ValueError, match=r"positions: expected .* got \(4,\)"):
        rotary.rotate_query_key(QUERY, KEY, torch.arange(5), torch.arange(4))
    with pytest.raises(ValueError, match="expected 5 tokens, as many as the query has, got 3"):
        rotary.rotate_query_key(QUERY, KEY[:, :, :3], torch.arange(5))
