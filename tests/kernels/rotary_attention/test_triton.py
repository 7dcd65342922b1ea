"""Triton's kernels give what the float64 twin gives, forward and backward.

In the interpreter with tiles of 16 × 16, so that 70 tokens meet every kind of tile; on a device
with the shipped ones, where half precision may err twice as much as plain torch's two matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ropewalk.blocks.rotary import (
    DualChunk,
    LeakyReRoPE,
    LogN,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
    YaRN,
)
from ropewalk.kernels.rotary_attention import rotary_attention

pytest.importorskip("triton")

from ropewalk.kernels.rotary_attention.triton import launch

pytestmark = pytest.mark.usefixtures("uninitialised")

Relative = Callable[[Tensor, Tensor], Tensor]


def _plain(i: Tensor, j: Tensor) -> Tensor:
    return i - j


def _rerope(i: Tensor, j: Tensor) -> Tensor:
    return (i - j).clamp(max=21)


def _leaky(factor: float) -> Relative:
    return lambda i, j: torch.where(i - j < 17, i - j, 17 + (i - j - 17) / factor)


def _self_extend(i: Tensor, j: Tensor) -> Tensor:
    return torch.where(i - j < 25, i - j, (i / 3).floor() - (j / 3).floor() + 25 - 25 // 3)


def _dual_chunk(i: Tensor, j: Tensor) -> Tensor:
    apart = (i / 15).floor() - (j / 15).floor()
    within, base = i % 15, j % 15
    near = torch.where(apart < 1, within, (within + 15).clamp(max=24))
    return torch.where(apart < 2, near, 24.0) - base


RULES: dict[str, tuple[Any, Relative]] = {
    "plain": (Plain(), _plain),
    "rerope": (ReRoPE(window=21), _rerope),
    "leaky": (LeakyReRoPE(window=17, factor=4.0), _leaky(4.0)),
    "inverse-leaky": (LeakyReRoPE(window=17, factor=0.25), _leaky(0.25)),
    "self-extend": (SelfExtend(group=3, window=25), _self_extend),
    "dual-chunk": (DualChunk(chunk=24, local=9), _dual_chunk),
}


@dataclass(frozen=True)
class Case:
    """One problem: sizes, rule and options."""

    rule: str = "rerope"
    batch: int = 2
    heads: int = 2
    kv_heads: int = 1
    queries: int = 40
    keys: int = 40
    head_dim: int = 16
    value_dim: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


SHIFTED = torch.arange(40) - torch.tensor([[0], [7]])
SHUFFLED = torch.randperm(40, generator=torch.Generator().manual_seed(3))
KEYS_SEEN = torch.rand(2, 1, 1, 40, generator=torch.Generator().manual_seed(4)) > 0.3
BIAS = torch.randn(2, 2, 40, 40, generator=torch.Generator().manual_seed(5))
BIAS = BIAS.masked_fill(BIAS > 1, -torch.inf)
MOVED = {"query_positions": SHIFTED, "key_positions": SHIFTED}
RIGHT_PADDED = {"key_lengths": torch.tensor([40, 17])}
PARTIAL = RotaryEmbedding(
    24, layout="interleaved", rotary_fraction=0.5, frequency=YaRN(factor=4, original_length=32)
)
CASES = {
    **{name: Case(name, queries=70, keys=70, batch=1) for name in RULES},
    "fewer-queries": Case(queries=19, keys=70),
    "more-queries": Case(queries=45, keys=20),
    "one-query": Case("leaky", queries=1, keys=50),
    "one-token": Case(queries=1, keys=1, batch=1),
    "value-dim": Case(value_dim=40),
    "head-dim-24": Case("self-extend", head_dim=24),
    "partial-interleaved": Case(head_dim=24, options={"rotary": PARTIAL}),
    "no-rotary": Case("plain", options={"rotary": None}),
    "no-rotary-log-n": Case("plain", options={"rotary": None, "log_n": LogN(length=8)}),
    "log-n": Case("leaky", options={"log_n": LogN(length=8)}),
    "softcap": Case(options={"softcap": 3.0}),
    "sinks": Case(options={"sinks": torch.tensor([0.5, -1.0])}),
    "scale": Case(options={"scale": 0.7}),
    "sliding": Case("plain", options={"sliding_window": 13}),
    "sliding-rerope": Case(options={"sliding_window": 30}),
    "sliding-dual-chunk": Case("dual-chunk", options={"sliding_window": 30}),
    "bidirectional": Case("plain", options={"causal": False}),
    "bidirectional-sliding": Case(
        "plain", queries=25, keys=51, options={"causal": False, "sliding_window": 9}
    ),
    "key-lengths": Case(options=RIGHT_PADDED),
    "right-padded": Case(options={**RIGHT_PADDED, "query_positions": torch.arange(40)}),
    "padded": Case("plain", options={"causal": False, "key_lengths": torch.tensor([23, 0])}),
    "no-key": Case("dual-chunk", options={"key_lengths": torch.tensor([0, 33])}),
    **{
        f"positions-{name}": Case(
            name, options={"query_positions": SHIFTED + 5, "key_positions": SHIFTED + 5}
        )
        for name in ("plain", "rerope", "dual-chunk")
    },
    "positions-sliding": Case(options={**MOVED, "sliding_window": 27}),
    "positions-bidirectional": Case(
        "plain", options={**MOVED, "sliding_window": 7, "causal": False}
    ),
    "shuffled": Case(options={"query_positions": SHUFFLED, "key_positions": SHUFFLED.flip(0)}),
    "mask": Case(options={"attention_mask": KEYS_SEEN}),
    "additive-mask-softcap": Case("leaky", options={"attention_mask": BIAS, "softcap": 2.0}),
    "one-group": Case("leaky", heads=6, kv_heads=1, batch=1),
}


def make(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the weights of a random loss."""
    generator = torch.Generator().manual_seed(1)
    value_dim = case.head_dim if case.value_dim is None else case.value_dim
    shapes = (
        (case.batch, case.heads, case.queries, case.head_dim),
        (case.batch, case.kv_heads, case.keys, case.head_dim),
        (case.batch, case.kv_heads, case.keys, value_dim),
        (case.batch, case.heads, case.queries, value_dim),
        (case.batch, case.heads, case.queries),
    )
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def gradients(output: Tensor, lse: Tensor, weights: list[Tensor], leaves: list[Tensor]) -> list:
    """Output, logsumexp, and the gradients of a loss that weighs both."""
    finite = lse.masked_fill(lse == -torch.inf, 0)
    seen = weights[1].to(lse.device, lse.dtype).masked_fill(lse == -torch.inf, 0)
    loss = (output * weights[0].to(output.device, output.dtype)).sum() + (finite * seen).sum()
    return [output, lse, *torch.autograd.grad(loss, leaves)]


def ours(case: Case, place: tuple[str, torch.dtype], **more: Any) -> list[Tensor]:
    device, dtype = place
    tensors = make(case, dtype)
    leaves = [x.to(device).requires_grad_() for x in tensors[:3]]
    options = {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in case.options.items()
    }
    options.setdefault("rotary", RotaryEmbedding(case.head_dim))
    if "sinks" in options:
        leaves.append(options["sinks"].requires_grad_())
        options["sinks"] = leaves[-1]
    output, lse = rotary_attention(
        *leaves[:3], distance=RULES[case.rule][0], backend="triton", return_logsumexp=True,
        **(options | more),
    )  # fmt: skip
    assert output.dtype == dtype
    return gradients(output, lse, tensors[3:], leaves)


def truth(case: Case, dtype: torch.dtype, oracle: Any) -> list[Tensor]:
    """The float64 twin on the same rounded inputs."""
    tensors = make(case, dtype)
    leaves = [x.double().requires_grad_() for x in tensors[:3]]
    options = dict(case.options)
    options.setdefault("rotary", RotaryEmbedding(case.head_dim))
    if "sinks" in options:
        leaves.append(options["sinks"].double().requires_grad_())
        options["sinks"] = leaves[-1]
    output, lse = oracle(*leaves[:3], relative=RULES[case.rule][1], **options)
    return gradients(output, lse, tensors[3:], leaves)


def compare(got: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """1e-5 for results and 1e-4 for gradients in float32; half precision by its epsilon."""
    names = ("output", "logsumexp", "query", "key", "value", "sinks")
    for name, a, b in zip(names, got, expected, strict=False):
        if dtype == torch.float32:
            limit = 1e-5 if name in ("output", "logsumexp") else 1e-4
        else:
            limit = 8 * torch.finfo(dtype).eps * max(1.0, b[b.isfinite()].abs().max().item())
        a = a.double().cpu()
        torch.testing.assert_close(a, b, rtol=0, atol=limit, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_twin(name: str, place: tuple[str, torch.dtype], oracle: Any) -> None:
    case = CASES[name]
    compare(ours(case, place), truth(case, place[1], oracle), place[1])


@given(
    case=st.builds(
        Case,
        rule=st.sampled_from(list(RULES)),
        batch=st.integers(1, 2),
        heads=st.sampled_from((2, 4)),
        kv_heads=st.integers(1, 2),
        queries=st.integers(1, 40),
        keys=st.integers(1, 40),
        head_dim=st.sampled_from((2, 6, 16, 20)),
        value_dim=st.one_of(st.none(), st.integers(1, 20)),
        options=st.fixed_dictionaries(
            {},
            optional={
                "softcap": st.floats(1, 10),
                "sliding_window": st.integers(1, 50),
                "scale": st.floats(0.1, 1.0),
            },
        ),
    )
)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_shapes(case: Case, place: tuple[str, torch.dtype], oracle: Any) -> None:
    compare(ours(case, place), truth(case, place[1], oracle), place[1])


PACKED_QUERIES, PACKED_KEYS = (3, 0, 27, 10), (5, 4, 27, 2)


@pytest.mark.parametrize("rule", ["plain", "rerope", "dual-chunk"])
@pytest.mark.parametrize("by_index", [True, False], ids=["by-index", "positions"])
def test_packed_sequences_equal_each_alone(
    rule: str, by_index: bool, place: tuple[str, torch.dtype]
) -> None:
    device, dtype = place
    queries, keys = PACKED_QUERIES, PACKED_KEYS if by_index else PACKED_QUERIES
    case = Case(rule, batch=1, queries=sum(queries), keys=sum(keys))
    cu = [torch.tensor((0, *lengths)).cumsum(0, dtype=torch.int32) for lengths in (queries, keys)]
    where = torch.cat([torch.arange(n) for n in queries]).to(device)
    options = {} if by_index else {"query_positions": where, "key_positions": where}
    got = ours(
        case, place, cu_seqlens_query=cu[0].to(device), cu_seqlens_key=cu[1].to(device), **options
    )
    tensors = make(case, dtype)
    leaves = [x.to(device).requires_grad_() for x in tensors[:3]]
    parts = []
    cut = [x.split(n, 2) for x, n in zip(leaves, (queries, keys, keys), strict=True)]
    for q, k, v in zip(*cut, strict=True):
        parts.append(
            rotary_attention(
                q, k, v, rotary=RotaryEmbedding(case.head_dim), distance=RULES[rule][0],
                backend="reference", return_logsumexp=True,
            )
        )  # fmt: skip
    output, lse = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    expected = [x.double().cpu() for x in gradients(output, lse, tensors[3:], leaves)]
    compare(got, expected, dtype)


@pytest.mark.parametrize("deterministic", [True, False])
def test_heads_of_a_group_together_or_apart(
    deterministic: bool, place: tuple[str, torch.dtype], oracle: Any, monkeypatch: Any
) -> None:
    """Too few blocks of keys to fill a chip: unless `deterministic`, programs share out heads."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 1000)
    taken = []
    choose = launch.splits_heads
    monkeypatch.setattr(
        launch, "splits_heads", lambda *args: taken.append(choose(*args)) or taken[-1]
    )
    case = CASES["one-group"]
    got = ours(case, place, deterministic=deterministic)
    assert taken == [not deterministic]
    compare(got, truth(case, place[1], oracle), place[1])


@pytest.mark.interpret
def test_half_precision_in_the_interpreter(oracle: Any) -> None:
    """The interpreter has no bfloat16 arithmetic; the kernels widen what they load there."""
    case = CASES["rerope"]
    compare(
        ours(case, ("cpu", torch.bfloat16)), truth(case, torch.bfloat16, oracle), torch.bfloat16
    )
