"""What a decoding call costs besides reading the cache: counted, so that it cannot creep back.

At 128k keys the cache is read in about a tenth of a millisecond, in which a GPU starts some thirty
kernels: each that a call launches on top would be seen.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.protocols import PositionMap, map_numbers, maps_of

RULES = [
    Plain(),
    ReRoPE(512),
    LeakyReRoPE(window=512, factor=3),
    SelfExtend(group=3, window=512),
    DualChunk(1024, 128),
]
KEYS = 9000  # more than torch's own attention is asked to answer


class Recorder(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(rule: Any, *, keys: int = KEYS, **options: Any) -> list[str]:
    query, key, value = torch.randn(1, 4, 1, 16), *torch.randn(2, 1, 2, keys, 16)
    options = {"rotary": RotaryEmbedding(16), **options}
    with Recorder() as recorder:
        rotary_attention(query, key, value, distance=rule, return_logsumexp=True, **options)
    return recorder.names


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_lengths": torch.tensor([7000])},
        {"rotary": RotaryEmbedding(16, frequency=YaRN(factor=4.0, original_length=16))},
        {"sliding_window": 600},
    ],
    ids=lambda options: "-".join(options) or "bare",
)
def test_nothing_runs_before_the_operator(rule: Any, options: dict[str, Any]) -> None:
    if rule.unit > 1 and "sliding_window" in options:
        options = {**options, "backend": "reference"}
    assert operators(rule, **options) == ["ropewalk.rotary_attention.default"]


def test_log_n_looks_at_the_queries_alone() -> None:
    names = operators(ReRoPE(512), log_n=LogN(512))
    assert names[-1] == "ropewalk.rotary_attention.default"
    assert names.count("aten.arange.start") == 1
    assert "aten.arange.default" not in names  # of the keys
    assert len(names) <= 12


def test_explicit_positions_reach_the_operator_as_they_are() -> None:
    at = torch.arange(KEYS)
    names = operators(ReRoPE(512), query_positions=at[-1:], key_positions=at, length=KEYS)
    views = {"aten.unsqueeze.default", "aten.slice.Tensor"}
    assert set(names) - views == {"ropewalk.rotary_attention.default"}


class Launches(NamedTuple):
    kernels: list[str]
    operators: list[str]


ALLOCATIONS = {
    "aten.empty.memory_format", "aten.new_empty.default", "aten.unsqueeze.default",
    "aten.detach.default", "aten.slice.Tensor",
}  # fmt: skip


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`launches(problem)`: what decoding would launch. Tensors without values: none is read."""
    pytest.importorskip("triton")
    from triton.runtime.jit import JITFunction

    from ropewalk.kernels.rotary_attention.triton import decode as module

    def count(problem: Problem) -> Launches:
        kernels: list[str] = []
        monkeypatch.setattr(
            JITFunction, "run", lambda self, *_, **__: kernels.append(self.__name__)
        )
        monkeypatch.setattr(module, "chip", lambda _: "sm_90")
        monkeypatch.setattr(module, "slots_of", lambda *_: 264)
        assert module.suits(problem)
        with Recorder() as recorder:
            module.decode(problem)
        return Launches(kernels, recorder.names)

    return count


def problem(rule: Any, **changes: Any) -> Problem:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    given: dict[str, Any] = {
        "query": empty(2, 8, 1, 64),
        "key": empty(2, 2, KEYS, 64),
        "value": empty(2, 2, KEYS, 64),
        "inverse_frequencies": empty(32, dtype=torch.float32),
        "factor": 1.0,
        "branches": tuple(rule.branches),
        "edges": tuple(rule.edges),
        "unit": rule.unit,
        "layout": "half",
        "causal": True,
        "scale": 0.125,
        "deterministic": True,
    }
    return Problem(**dict.fromkeys(Problem.__dataclass_fields__) | given | changes)


@pytest.mark.compile
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
def test_decoding_launches_three_kernels(launches: Any, rule: Any, lengths: bool) -> None:
    where = torch.empty(2, dtype=torch.int64, device="meta") if lengths else None
    factor = torch.empty(2, 1, device="meta") if lengths else None
    seen = launches(problem(rule, key_lengths=where, query_factor=factor))
    assert seen.kernels == ["prepare_kernel", "decode_kernel", "merge_kernel"]
    assert set(seen.operators) <= ALLOCATIONS


@pytest.mark.compile
def test_a_recorded_graph_can_hold_it(launches: Any) -> None:
    """Nor does a call with positions and a mask read anything back to the host."""
    seen = launches(
        problem(
            ReRoPE(512),
            query_positions=torch.empty(1, 1, dtype=torch.int64, device="meta"),
            key_positions=torch.empty(1, KEYS, dtype=torch.int64, device="meta"),
            attention_mask=torch.empty(2, 1, 1, KEYS, dtype=torch.bool, device="meta"),
        )
    )
    assert len(seen.kernels) == 3
    assert "aten._local_scalar_dense.default" not in seen.operators


def test_maps_survive_their_numbers() -> None:
    for rule in RULES:
        assert maps_of(map_numbers(rule.branches)) == tuple(rule.branches)
    assert PositionMap.of(PositionMap(2.5, 1.0, True, 7, 9.0).numbers()) == PositionMap(
        2.5, 1.0, True, 7, 9.0
    )


@pytest.mark.interpret
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_kernels_place_as_torch_does(rule: Any) -> None:
    """To the last bit, also for indices that a chunk, group or factor does not divide."""
    pytest.importorskip("triton")
    from ropewalk.kernels.rotary_attention.triton.prepare import prepare

    query, key = torch.randn(2, 4, 3, 16), torch.randn(2, 2, KEYS, 16)
    same = {
        "query": query, "key": key, "value": key,
        "inverse_frequencies": torch.rand(8), "query_factor": torch.rand(2, 3),
    }  # fmt: skip
    by_index = problem(rule, **same, key_lengths=torch.tensor([1, 6001]))
    at = by_index.visibility
    given = problem(
        rule, **same, query_positions=at.query_positions, key_positions=at.key_positions
    )
    turned, angles = prepare(by_index, raw=0)
    expected, expected_angles = prepare(given, raw=0)
    assert torch.equal(angles, expected_angles)
    # Queries before the first key see nothing, wherever they are.
    seen = at.query_positions[:, None, :, None] >= 0
    assert torch.equal(turned * seen, expected * seen)
