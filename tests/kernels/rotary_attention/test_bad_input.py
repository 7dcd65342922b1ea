"""What is refused, and that the message names what was expected and what came."""

from dataclasses import dataclass, replace

import pytest
import torch

from ropewalk.blocks.rotary import DualChunk, LogN, Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import Branch, rotary_attention

ROTARY = RotaryEmbedding(8)


@dataclass(frozen=True)
class Rule:
    """A hand-written rule, as a user's may be."""

    branches: tuple = (Branch(), Branch())
    edges: tuple = (4,)
    unit: int = 1


@dataclass
class BadRotary:
    rotary_dim: int = 8
    layout: str = "half"
    frequencies: torch.Tensor | None = None
    factor: float | torch.Tensor = 1.0

    def inverse_frequencies(self, length=None):
        return torch.ones(self.rotary_dim // 2) if self.frequencies is None else self.frequencies

    def attention_factor(self, length=None):
        return self.factor


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


Q, K = zeros(2, 4, 5, 8), zeros(2, 2, 7, 8)

TENSORS = {
    "rank": ((Q[0], K, K), r"query must have 4 dimensions.*got shape.*transpose\(0, 1\)"),
    "key dtype": ((Q, K.double(), K), "share a dtype.*float32.*float64"),
    "integer": ((Q.long(), K.long(), K.long()), "must be float32.*got torch.int64"),
    "device": ((Q, K.to("meta"), K), "on one device.*cpu.*meta"),
    "batch": ((Q, K[:1], K[:1]), "batch size, got 2 .* 1"),
    "head_dim": ((Q, K[..., :6], K), "share head_dim, got 8 and 6"),
    "value length": ((Q, K, K[:, :, :6]), "share heads and length"),
    "list": (([1], K, K), "query must be a tensor, got list"),
    "list of keys": ((Q, [1], K), "key must be a tensor, got list"),
    "no head_dim": ((Q[..., :0], K[..., :0], K), "head_dim of at least 1, got 0"),
    "no heads": ((Q[:, :0], K, K), "got 0 and 2; both need"),
    "no key heads": ((Q, K[:, :0], K[:, :0]), "got 4 and 0; both need"),
    "heads": ((zeros(2, 3, 5, 8), K, K), "multiple of the key's, got 3 and 2"),
}

OPTIONS = {
    "norm of another width": (
        {"query_norm_weight": torch.ones(3)},
        r"query_norm_weight: expected shape \(8,\).*got \(3,\)",
    ),
    "norm of whole numbers": (
        {"key_norm_weight": torch.ones(8, dtype=torch.int64)},
        "key_norm_weight: expected a floating-point tensor",
    ),
    "negative norm epsilon": (
        {"norm_eps": -1.0},
        "norm_eps: expected a finite number of at least 0",
    ),
    "rule edges": ({"distance": Rule(edges=())}, "one edge fewer.*0 edges and 2 branches"),
    "window 0": ({"distance": Rule(edges=(0,))}, "window.*at least 1.*(0,)"),
    "unit 0": ({"distance": Rule(unit=0)}, "unit 0"),
    "fraction of an edge": ({"distance": Rule(edges=(2.5,))}, r"integers, .*\(2.5,\); .*int"),
    "true unit": ({"distance": Rule(unit=True)}, "integers, got unit True"),
    "edges fall": ({"distance": Rule((Branch(),) * 3, (2, 2))}, "ascend, got"),
    "not a rule": ({"distance": "rerope"}, "branches, edges and unit.*str"),
    "bidirectional": ({"distance": ReRoPE(3), "causal": False}, "2 branches.*causal=False"),
    "bidirectional chunks": ({"distance": DualChunk(8, 2), "causal": False}, "3 branches"),
    "not a rotary": ({"rotary": "rope"}, "rotary must have.*got str"),
    "class of a rule": ({"distance": ReRoPE}, "branches.*the class ReRoPE itself; call it"),
    "class of a rotary": ({"rotary": BadRotary}, "rotary must have.*the class BadRotary itself"),
    "class of log_n": ({"log_n": LogN}, "log_n must be a function.*the class LogN itself"),
    "number for log_n": ({"log_n": 512}, r"log_n must be a function.*LogN\(length=512\), got int"),
    "odd rotary": ({"rotary": BadRotary(7)}, "even.*got 7"),
    "wide rotary": ({"rotary": BadRotary(10)}, "at most head_dim 8, got 10"),
    "layout": ({"rotary": BadRotary(layout="pairs")}, "'half' or 'interleaved', got 'pairs'"),
    "frequencies": ({"rotary": BadRotary(frequencies=torch.ones(3))}, r"shape \(4,\).*got \(3,\)"),
    "learned frequencies": (
        {"rotary": BadRotary(frequencies=torch.ones(4, requires_grad=True))},
        "must not require a gradient",
    ),
    "query positions": (
        {"query_positions": torch.arange(7)},
        r"query_positions.*\(5,\).*got \(7,\)",
    ),
    "key positions": ({"key_positions": torch.arange(5)}, r"key_positions.*\(7,\).*got \(5,\)"),
    "batch of positions": ({"key_positions": zeros(3, 7).long()}, r"\(2, 7\), got \(3, 7\)"),
    "position device": ({"query_positions": zeros(5).to("meta")}, "on cpu.*got meta"),
    "half positions": ({"query_positions": zeros(5).bfloat16()}, "got torch.bfloat16.*256"),
    "complex positions": ({"query_positions": zeros(5).cfloat()}, "got torch.complex64"),
    "boolean positions": ({"query_positions": zeros(5).bool()}, "must be integer.*got torch.bool"),
    "wide bytes": ({"key_positions": zeros(7).to(torch.uint16)}, "got torch.uint16.*long"),
    "learned positions": (
        {"query_positions": torch.zeros(5, requires_grad=True)},
        "query_positions must not require a gradient",
    ),
    "learned factor": (
        {"rotary": BadRotary(factor=torch.ones((), requires_grad=True))},
        "attention_factor must not require a gradient",
    ),
    "several factors": ({"rotary": BadRotary(factor=torch.ones(4))}, r"one number.*shape \(4,\)"),
    "number from log_n": ({"log_n": lambda at: 1.0}, "what log_n returns must be a tensor, got"),
    "padding mask": (
        {"attention_mask": torch.ones(2, 7, dtype=torch.bool)},
        r"got \(2, 7\); a padding mask .* mask\[:, None, None, :\]",
    ),
    "mask of pairs": ({"attention_mask": zeros(5, 7)}, r"with mask\[None, None\]"),
    "text for a cap": ({"softcap": "30"}, r"softcap must be a number, got '30'; .*float"),
    "text for a scale": ({"scale": "0.1"}, r"scale must be a number, got '0.1'; .*float"),
    "no causal": ({"causal": None}, "causal must be True or False, got None"),
    "number for a switch": ({"return_logsumexp": 1}, "must be True or False, got 1"),
    "deterministic": ({"deterministic": "yes"}, "True, False or None, .*got 'yes'"),
    "scale": ({"scale": float("nan")}, "scale must be finite, got nan"),
    "sliding window": ({"sliding_window": 0}, "sliding_window must be at least 1, got 0"),
    "fraction of a window": ({"sliding_window": 2.5}, "an integer number of keys, got 2.5"),
    "true window": ({"sliding_window": True}, "an integer number of keys, got True"),
    "no cap": ({"softcap": float("inf")}, "softcap must be positive and finite, got inf"),
    "softcap": ({"softcap": 0.0}, "softcap must be positive and finite, got 0.0"),
    "sinks": ({"sinks": zeros(2)}, r"shape \(4,\), got \(2,\)"),
    "sink dtype": ({"sinks": zeros(4).long()}, "floating point"),
    "key_lengths": ({"key_lengths": torch.tensor([3])}, r"shape \(2,\), got \(1,\)"),
    "key_lengths dtype": ({"key_lengths": zeros(2)}, "integer, got torch.float32"),
    "mask shape": ({"attention_mask": zeros(2, 1, 5, 6)}, r"attention_mask.*got \(2, 1, 5, 6\)"),
    "mask rank": ({"attention_mask": zeros(5, 7)}, r"got \(5, 7\)"),
    "mask dtype": ({"attention_mask": zeros(2, 1, 5, 7).long()}, r"\.bool\(\)"),
    "mask gradient": (
        {"attention_mask": torch.zeros(2, 1, 5, 7, requires_grad=True)},
        "must not require a gradient",
    ),
    **{
        f"list of {name}": ({name: [1]}, f"{name} must be a tensor, got list")
        for name in (
            "query_positions",
            "key_positions",
            "sinks",
            "key_lengths",
            "attention_mask",
            "cu_seqlens_query",
        )
    },
    "log_n": ({"log_n": lambda at: at[..., :1].float()}, "one factor per position"),
    "triton": ({"backend": "triton"}, "expected tensors on a CUDA device, got cpu"),
    "backend": ({"backend": "cuda"}, "expected one of auto, reference, flash, triton, got 'cuda'"),
}


def lengths(*numbers, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


# Seven packed tokens, with these options beside a good `cu_seqlens_query`.
PACKED = {
    "decreasing": ({"cu_seqlens_query": lengths(0, 5, 3, 7)}, "decrease, got 5 followed by 3"),
    "end": ({"cu_seqlens_query": lengths(0, 3, 6)}, "end at the number of tokens, 7, got 6"),
    "beyond": ({"cu_seqlens_query": lengths(0, 3, 9)}, "end at the number of tokens, 7, got 9"),
    "wraps": ({"cu_seqlens_query": torch.tensor([0, 2**32 + 7])}, "tokens, 7, got 2147483647"),
    "begin": ({"cu_seqlens_query": lengths(1, 3, 7)}, "begin with 0, got 1; .*cumsum"),
    "key end": ({"cu_seqlens_key": lengths(0, 3, 5)}, "cu_seqlens_key must end .* 7, got 5"),
    "counts": ({"cu_seqlens_key": lengths(0, 7)}, "equally many sequences, got 2 and 1"),
    "rank": ({"cu_seqlens_query": lengths(0, 7)[None]}, r"shape \(sequences \+ 1,\).*got \(1, 2\)"),
    "none": ({"cu_seqlens_query": lengths(0)}, "at least one sequence, got"),
    "dtype": ({"cu_seqlens_query": torch.tensor([0.0, 7.0])}, "int32 or int64, got torch.float32"),
    "device": ({"cu_seqlens_query": lengths(0, 7).to("meta")}, "on cpu, got meta"),
    "key alone": (
        {"cu_seqlens_query": None, "cu_seqlens_key": lengths(0, 7)},
        "cu_seqlens_key needs cu_seqlens_query",
    ),
    "lengths": ({"key_lengths": lengths(7)}, "key_lengths cannot be combined"),
    "mask": (
        {"attention_mask": torch.ones(1, 1, 7, 7, dtype=torch.bool)},
        "attention_mask cannot be combined",
    ),
    "positions": ({"query_positions": torch.arange(3)}, r"query_positions.*\(7,\).*got \(3,\)"),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("case", PACKED)
def test_packed(case, dtype):
    options, message = PACKED[case]
    options = {"cu_seqlens_query": lengths(0, 3, 7), **options}
    for name, x in options.items():
        if x is not None and x.dtype == torch.int32:
            options[name] = x.to(dtype)
    packed = K[:1]
    with pytest.raises((ValueError, TypeError), match=message):
        rotary_attention(packed, packed, packed, rotary=ROTARY, **options)


def test_integers_of_numpy_are_integers():
    numpy = pytest.importorskip("numpy")
    three = numpy.int64(3)
    got = rotary_attention(
        Q, K, K, rotary=ROTARY, distance=Rule(edges=(three,)), sliding_window=three
    )
    assert got.shape == Q.shape


def test_packed_batches():
    with pytest.raises(ValueError, match="batch of 1, got batch 2"):
        rotary_attention(K, K, K, rotary=ROTARY, cu_seqlens_query=lengths(0, 7))


def test_packed_lengths_are_checked_in_compiled_code():
    compiled = torch.compile(
        lambda x, at: rotary_attention(x, x, x, rotary=ROTARY, cu_seqlens_query=at),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    assert compiled(K[:1], lengths(0, 3, 7)).shape == K[:1].shape
    with pytest.raises(ValueError, match="decrease, got 5 followed by 3"):
        compiled(K[:1], lengths(0, 5, 3))


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case):
    tensors, message = TENSORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        rotary_attention(*tensors, rotary=ROTARY)


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    options, message = OPTIONS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        rotary_attention(Q, K, K, **{"rotary": ROTARY, "distance": Plain(), **options})


def test_a_users_own_rule_and_rotary_work():
    q, k = torch.randn(Q.shape), torch.randn(K.shape)
    got = rotary_attention(q, k, k, rotary=BadRotary(), distance=Rule())
    same = rotary_attention(q, k, k, rotary=BadRotary(), distance=replace(Rule(), edges=(99,)))
    torch.testing.assert_close(got, same, rtol=0, atol=1e-6)
