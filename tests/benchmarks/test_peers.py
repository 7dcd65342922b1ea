"""Every peer computes what the op computes, and a wrong one is found out."""

import math

import pytest
import torch

from benchmarks.attention import AttentionWorkload, Shape
from benchmarks.case import Unavailable
from benchmarks.peers import attention_peer, flash_attn, flex
from benchmarks.rotation import RotationShape, RotationWorkload
from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, Plain, ReRoPE, SelfExtend
from ropewalk.kernels.rotary_attention import Branch, PositionMap

RULES = {
    "plain": Plain(),
    "rerope": ReRoPE(16),
    "leaky": LeakyReRoPE(12, 4),
    "self-extend": SelfExtend(4, 16),
    "dual-chunk": DualChunk(24, 8),
    "window-beyond-the-keys": ReRoPE(1000),
}


def workload(rule, *, queries=70, keys=70, backward=False) -> AttentionWorkload:
    shape = Shape(2, 4, 2, queries, keys, 16, torch.float32, "cpu", rule, backward)
    return AttentionWorkload(shape)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("peer", ["auto", "reference", "two-matrix", "sdpa:plain", "auto:plain"])
@pytest.mark.parametrize("rule", RULES)
def test_peers_agree_with_the_oracle(rule, peer, backward):
    problem = workload(RULES[rule], backward=backward)
    problem.build(peer)()
    check = problem.check(peer)
    assert check.error < 1e-5


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("peer", ["auto", "reference", "two-matrix", "sdpa:plain"])
def test_half_precision_passes_with_room(peer, backward):
    shape = Shape(1, 4, 1, 500, 500, 128, torch.bfloat16, "cpu", ReRoPE(128), backward)
    problem = AttentionWorkload(shape)
    problem.build(peer)()
    check = problem.check(peer)
    assert check.error < 0.8 * check.tolerance


@pytest.mark.parametrize("peer", ["auto", "two-matrix", "sdpa:plain"])
@pytest.mark.parametrize("rule", ["plain", "rerope", "self-extend", "dual-chunk"])
def test_peers_agree_in_decoding(rule, peer):
    problem = workload(RULES[rule], queries=1)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-5


def test_keys_are_repeated_where_torch_refuses_grouped_heads(monkeypatch):
    from benchmarks.peers import sdpa

    attention = sdpa.scaled_dot_product_attention

    def ungrouped(*tensors, enable_gqa=False, **options):
        if enable_gqa:
            raise RuntimeError("No available kernel. Aborting execution.")
        return attention(*tensors, **options)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", ungrouped)
    problem = workload(RULES["plain"], backward=True)
    problem.build("sdpa")()
    assert problem.check("sdpa").error < 1e-5


@pytest.mark.slow
def test_the_compiled_two_matrix_form_agrees():
    problem = workload(RULES["rerope"])
    problem.build("two-matrix-compiled")()
    assert problem.check("two-matrix-compiled").error < 1e-5


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
def test_the_two_matrix_form_is_the_same_by_blocks_and_recomputed(monkeypatch, backward):
    from benchmarks.peers import two_matrix

    monkeypatch.setitem(two_matrix.BLOCK_BYTES, "cpu", 20 * 2 * 4 * 70 * 4)
    monkeypatch.setitem(two_matrix.KEPT_BYTES, "cpu", 0)
    problem = workload(RULES["dual-chunk"], backward=backward)
    problem.build("two-matrix")()
    assert problem.check("two-matrix").error < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("queries", [70, 33])
def test_flex_attention_before_compilation_agrees(rule, queries):
    problem = workload(RULES[rule], queries=queries)
    output = flex.forward_of(problem, RULES[rule])(problem.query, problem.key, problem.value)
    expected = attention_peer("reference", problem)(problem.query, problem.key, problem.value)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def dense_flash_attn(query, key, value, *, causal, window_size=(-1, -1), return_attn_probs=False):
    """What flash-attn's function means, written as a dense softmax: (batch, seq, heads, dim)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    # flash-attn aligns the last query with the last key.
    away = torch.arange(query.shape[2])[:, None] + key.shape[2] - query.shape[2]
    away = away - torch.arange(key.shape[2])
    assert causal
    hidden = away < 0
    if window_size[0] >= 0:
        hidden |= away > window_size[0]
    scores = scores.masked_fill(hidden, -torch.inf)
    output = (scores.softmax(-1) @ value).transpose(1, 2)
    return (output, scores.logsumexp(-1), None) if return_attn_probs else output


@pytest.mark.parametrize("queries", [70, 33, 1])
@pytest.mark.parametrize("rule", ["plain", "rerope", "leaky", "window-beyond-the-keys"])
def test_the_merge_of_flash_attn_calls_agrees(rule, queries):
    problem = workload(RULES[rule], queries=queries)
    forward = flash_attn.forward_of(dense_flash_attn, problem, RULES[rule])
    output = forward(problem.query, problem.key, problem.value)
    expected = attention_peer("reference", problem)(problem.query, problem.key, problem.value)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("peer", "rule", "reason"),
    [
        ("sdpa", "rerope", "plain rule only"),
        ("sdpa-cudnn", "plain", "backend"),
        ("flex", "rerope", "CPU"),
        ("flash-attn", "rerope", "flash-attn"),
        ("triton", "rerope", "backend 'triton' cannot run"),
    ],
)
def test_a_peer_that_cannot_take_part_says_why(monkeypatch, peer, rule, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unavailable, match=reason):
        workload(RULES[rule]).build(peer)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("rule", ["plain", "rerope", "dual-chunk"])
def test_a_wrong_result_is_found_out(rule, backward):
    """The rule of another window, a dropped row of keys, or a gradient too large by a tenth."""
    problem = workload(RULES[rule], backward=backward)
    problem.build("auto")
    right = problem._forwards["auto"]
    wrong = {
        "another rule": attention_peer("auto", workload(ReRoPE(7))),
        "a dropped key": lambda q, k, v: right(
            q, k, torch.cat((v[:, :, :-9] * 1, 0 * v[:, :, -9:]), 2)
        ),
        "not a number": lambda q, k, v: right(q, k, v) * math.nan,
    }
    for forward in wrong.values():
        problem._forwards["auto"] = forward
        assert not problem.check("auto").passes


@pytest.mark.parametrize("rule", RULES)
def test_a_wrong_branch_of_the_librarys_rule_is_found_out(rule, monkeypatch):
    """The oracle writes rules from their definitions, so that a rule's own mistake shows."""
    right, kind = RULES[rule].branches, type(RULES[rule])
    first = Branch(PositionMap(divisor=1.1), right[0].key)
    monkeypatch.setattr(kind, "branches", property(lambda rule: (first, *right[1:])))
    problem = workload(RULES[rule])
    problem.build("auto")()
    assert not problem.check("auto").passes


def test_a_rule_without_a_definition_is_refused():
    problem = workload(Plain())
    problem.build("auto")()
    with pytest.raises(TypeError, match=r"got Unknown; .* benchmarks/definitions\.py"):
        problem._oracle(type("Unknown", (), {})(), problem.query, problem.key, problem.value)


@pytest.mark.parametrize(
    ("peer", "backward"),
    [("auto", False), ("auto", True), ("torch", False), ("torch", True), ("auto-in-place", False)],
)
@pytest.mark.parametrize("norm", [False, True], ids=["bare", "norm"])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotations_agree_with_the_oracle(peer, layout, norm, backward):
    shape = RotationShape(2, 4, 2, 33, 16, torch.float32, "cpu", layout, norm, backward)
    problem = RotationWorkload(shape)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-5
