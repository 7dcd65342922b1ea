"""The op equals a float64 twin that rotates every pair by its own relative position."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.blocks.rotary import (
    DynamicNTK,
    LogN,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
    YaRN,
)
from ropewalk.kernels.rotary_attention import (
    reference,
    rotary_attention,
    schedule,
)
from ropewalk.kernels.rotary_attention.flash import tiles
from ropewalk.kernels.rotary_attention.reference import walk

CPU_BACKENDS = ("reference", "flash", "auto")


@pytest.fixture(params=["masked", "triangles", "tiles"], autouse=True)
def _paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so that small inputs meet every kind of run and of tile."""
    monkeypatch.setattr(walk, "QUERY_BLOCKS", (9, 4, 2))
    monkeypatch.setattr(walk, "TILE_ELEMENTS", 64)
    monkeypatch.setattr(walk, "MINIMUM_TILE", 3)
    monkeypatch.setattr(tiles, "FORWARD_BLOCK", 3)
    monkeypatch.setattr(tiles, "BACKWARD_BLOCKS", (2, 4))
    monkeypatch.setattr(tiles, "CORNER", 2)
    triangles_from = 2 if request.param == "triangles" else 100
    monkeypatch.setattr(tiles, "MASKED_BACKWARD_WINDOW", triangles_from)
    if request.param == "tiles":
        monkeypatch.setattr(reference.launch, "_fusable", lambda problem: False)


def compare(
    oracle: Any,
    tensors: tuple,
    rule: tuple,
    tolerance: float = 1e-12,
    backends: tuple[str, ...] = ("reference", "auto"),
    **options,
) -> None:
    """Output, logsumexp and all gradients of op and oracle, backend by backend."""
    options.setdefault("rotary", RotaryEmbedding(tensors[0].shape[-1]))
    leaves = [x for x in (*tensors, options.get("sinks")) if x is not None]
    expected, expected_lse = oracle(*tensors, relative=rule[1], **options)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    lse_weight = torch.randn(expected_lse.shape, generator=generator, dtype=torch.float64)

    def gradients(output: torch.Tensor, lse: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Without and with a gradient of the logsumexp, which flash leaves to the reference."""
        loss = (output * weight).sum()
        of_lse = (lse.masked_fill(expected_lse == -torch.inf, 0) * lse_weight).sum()
        return [torch.autograd.grad(x, leaves, retain_graph=True) for x in (loss, loss + of_lse)]

    wanted = gradients(expected, expected_lse) if leaves[0].requires_grad else []
    for backend in backends:
        got, lse = rotary_attention(
            *tensors, distance=rule[0], backend=backend, return_logsumexp=True, **options
        )
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=10 * tolerance)
        short = rotary_attention(*tensors, distance=rule[0], backend=backend, **options)
        torch.testing.assert_close(short.double(), expected, rtol=0, atol=tolerance)
        results = gradients(got, lse) if leaves[0].requires_grad else []
        for result, right in zip(results, wanted, strict=True):
            for name, a, b in zip(("query", "key", "value", "sinks"), result, right, strict=False):
                torch.testing.assert_close(
                    a,
                    b,
                    rtol=0,
                    atol=100 * tolerance,
                    msg=lambda m: f"{backend}, {name}: {m}",  # noqa: B023
                )


def test_every_rule_forward_and_backward(oracle, inputs, rule):
    compare(oracle, inputs().make(grad=True), rule)


@pytest.mark.parametrize("queries", [1, 3, 17])
def test_fewer_queries_than_keys_sit_at_the_end(oracle, inputs, rule, queries):
    compare(oracle, inputs(queries=queries, keys=29).make(grad=True), rule)


def test_more_queries_than_keys_see_nothing_at_first(oracle, inputs, rule):
    compare(oracle, inputs(queries=13, keys=6).make(grad=True), rule)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_layouts_and_partial_rotary(oracle, inputs, rule, layout):
    rotary = RotaryEmbedding(12, layout=layout, rotary_fraction=0.5)
    compare(oracle, inputs(head_dim=12).make(grad=True), rule, rotary=rotary)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (6, 1), (3, 3)])
def test_grouped_queries(oracle, inputs, rule, heads, kv_heads):
    compare(oracle, inputs(heads=heads, kv_heads=kv_heads).make(grad=True), rule)


def test_left_padding_by_positions_and_mask(oracle, inputs, rule):
    padding = torch.tensor([0, 6])
    positions = (torch.arange(19) - padding[:, None]).clamp(min=0)
    mask = (torch.arange(19) >= padding[:, None])[:, None, None]
    compare(
        oracle, inputs().make(grad=True), rule,
        query_positions=positions, key_positions=positions, attention_mask=mask,
    )  # fmt: skip


def test_positions_in_any_order(oracle, inputs, rule):
    order = torch.stack([torch.randperm(40)[:19] for _ in range(2)])
    compare(oracle, inputs().make(grad=True), rule, query_positions=order, key_positions=order)


def test_fractional_positions(oracle, inputs):
    positions = torch.arange(19) * 0.7
    compare(
        oracle, inputs().make(), (ReRoPE(100), lambda i, j: i - j),
        query_positions=positions.double(), key_positions=positions.double(),
    )  # fmt: skip


def test_sliding_window(oracle, inputs, rule):
    compare(oracle, inputs().make(grad=True), rule, sliding_window=9)


def test_softcap_sinks_log_n_and_temperature(oracle, inputs, rule):
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    rotary = RotaryEmbedding(8, frequency=YaRN(factor=4, original_length=16))
    assert rotary.attention_factor() != 1
    compare(
        oracle, inputs().make(grad=True), rule, tolerance=1e-11,
        softcap=1.5, sinks=sinks, rotary=rotary, log_n=LogN(4), scale=0.7,
    )  # fmt: skip


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("rows", [1, 19])
def test_masks(oracle, inputs, rule, heads, rows):
    visible = torch.rand(2, heads, rows, 19, generator=torch.Generator().manual_seed(3)) < 0.7
    compare(oracle, inputs().make(grad=True), rule, attention_mask=visible)
    bias = torch.randn(visible.shape).masked_fill(~visible, -torch.inf).double()
    compare(oracle, inputs().make(grad=True), rule, attention_mask=bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_least_number_of_a_mask_hides(oracle, inputs, rule, dtype):
    """Rows that see nothing give zeros then, too, and not the mean of what is hidden."""
    visible = torch.rand(2, 1, 19, 19, generator=torch.Generator().manual_seed(3)) < 0.7
    visible[1, :, 4:7] = False
    bias = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    tensors = inputs().make(grad=True)
    options = {"rotary": RotaryEmbedding(8), "distance": rule[0], "return_logsumexp": True}
    results = [
        (*found, *torch.autograd.grad(found[0].sum(), tensors))
        for found in (
            rotary_attention(*tensors, attention_mask=mask, **options) for mask in (bias, visible)
        )
    ]
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)
    assert (results[0][0][1, :, 4:7] == 0).all()
    expected = oracle(*tensors, rotary=options["rotary"], relative=rule[1], attention_mask=visible)
    torch.testing.assert_close(results[0][0], expected[0], rtol=0, atol=1e-12)


def test_cache_lengths_by_row(oracle, inputs, rule):
    lengths = torch.tensor([11, 19])
    compare(oracle, inputs(queries=3).make(grad=True), rule, key_lengths=lengths)
    compare(oracle, inputs(queries=1).make(grad=True), rule, key_lengths=lengths)


def test_right_padding(oracle, inputs, rule):
    """Rows of a training batch, padded at their ends, with queries by index.

    Flash refuses the padding's queries, which sit behind all keys; it takes them at the last keys.
    """
    options = {"key_lengths": torch.tensor([11, 19]), "query_positions": torch.arange(19)}
    compare(oracle, inputs().make(grad=True), rule, **options)
    del options["query_positions"]
    compare(oracle, inputs().make(grad=True), rule, backends=CPU_BACKENDS, **options)


@pytest.mark.parametrize("queries", [1, 19])
@pytest.mark.parametrize("lengths", [[11, 19], [0, 7]], ids=str)
def test_bidirectional_with_lengths(oracle, inputs, queries, lengths):
    rule = (Plain(), lambda i, j: i - j)
    compare(
        oracle, inputs(queries=queries).make(grad=True), rule, causal=False,
        key_lengths=torch.tensor(lengths), backends=CPU_BACKENDS,
    )  # fmt: skip


def test_lengths_beyond_the_keys_mean_all_of_them(inputs, rule):
    tensors = inputs(queries=3).make()
    options = {"rotary": RotaryEmbedding(8), "distance": rule[0]}
    for lengths, same in (([30, 19], [19, 19]), ([-4, 7], [0, 7])):
        got = rotary_attention(*tensors, key_lengths=torch.tensor(lengths), **options)
        wanted = rotary_attention(*tensors, key_lengths=torch.tensor(same), **options)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}, {"softcap": 2.0}], ids=str)
def test_bidirectional_plain(oracle, inputs, options):
    rule = (Plain(), lambda i, j: i - j)
    compare(oracle, inputs().make(grad=True), rule, causal=False, **options)
    compare(oracle, inputs(queries=5).make(grad=True), rule, causal=False, **options)


def test_without_rotary(oracle, inputs):
    plain = (ReRoPE(1), None)  # the oracle ignores the rule
    with pytest.raises(ValueError, match="expected a rotary"):
        rotary_attention(*inputs().make(), rotary=None, distance=plain[0])
    got = rotary_attention(*inputs().make(), rotary=None, backend="reference")
    torch.testing.assert_close(got, oracle(*inputs().make(), rotary=None)[0], rtol=0, atol=1e-12)


def test_value_dim_of_its_own(oracle, inputs, rule):
    compare(oracle, inputs(value_dim=5).make(grad=True), rule)


def test_rows_that_see_nothing_give_zeros(inputs, rule):
    mask = torch.ones(2, 1, 19, 19, dtype=torch.bool)
    mask[1, :, 4:7] = False
    q, k, v = inputs().make(grad=True)
    output, lse = rotary_attention(
        q, k, v, rotary=RotaryEmbedding(8), distance=rule[0], attention_mask=mask,
        return_logsumexp=True,
    )  # fmt: skip
    assert (output[1, :, 4:7] == 0).all()
    assert (lse[1, :, 4:7] == -torch.inf).all()
    assert output.isfinite().all()
    gradients = torch.autograd.grad(output.sum(), (q, k, v))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][1, :, 4:7] == 0).all()


def test_no_keys_at_all_under_a_rule_of_the_length(inputs):
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(2.0, 16))
    for positions in (None, torch.arange(0)):
        assert (
            rotary_attention(
                *inputs(keys=0).make(), rotary=rotary, distance=ReRoPE(3), key_positions=positions
            )
            == 0
        ).all()


def test_no_keys_at_all(inputs):
    q, k, v = inputs(keys=0).make()
    output, lse = rotary_attention(
        q, k, v, rotary=RotaryEmbedding(8), distance=ReRoPE(3), return_logsumexp=True
    )
    assert (output == 0).all()
    assert (lse == -torch.inf).all()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_shapes_in_float32(oracle, inputs, rule, data):
    draw = data.draw
    kv_heads = draw(st.integers(1, 3), "kv_heads")
    keys = draw(st.integers(1, 33), "keys")
    head_dim = draw(st.sampled_from([2, 8, 12, 20]), "head_dim")
    shape = inputs(
        batch=draw(st.integers(1, 3), "batch"),
        heads=kv_heads * draw(st.integers(1, 3), "groups"),
        kv_heads=kv_heads,
        queries=draw(st.integers(1, keys), "queries"),
        keys=keys,
        head_dim=head_dim,
        seed=draw(st.integers(0, 99), "seed"),
    )
    options = {
        "rotary": RotaryEmbedding(
            head_dim,
            layout=draw(st.sampled_from(["half", "interleaved"]), "layout"),
            rotary_fraction=draw(st.sampled_from([1.0, 0.5]), "fraction") if head_dim > 2 else 1.0,
        )
    }
    if draw(st.booleans(), "sliding") and rule[0].unit == 1:
        options["sliding_window"] = draw(st.integers(1, 20), "sliding_window")
    if draw(st.booleans(), "moved"):
        start = draw(st.integers(0, 20), "start") * rule[0].unit
        options["key_positions"] = torch.arange(keys) + start
        last = draw(st.integers(0, keys - 1), "last query's key")
        options["query_positions"] = torch.arange(1 - shape.queries, 1) + start + last
    tensors = shape.make(grad=True)
    exact, exact_lse = oracle(*tensors, relative=rule[1], **options)
    wanted = torch.autograd.grad(exact.square().sum(), tensors)
    single = [x.detach().float().requires_grad_() for x in tensors]
    for backend in CPU_BACKENDS:
        got, lse = rotary_attention(
            *single, distance=rule[0], return_logsumexp=True, backend=backend, **options
        )
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-5)
        result = torch.autograd.grad(got.square().sum(), single)
        for a, b in zip(result, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_ragged_schedules_fall_back_to_one_run(oracle, inputs, monkeypatch):
    monkeypatch.setattr(schedule, "MAX_RUNS", 1)
    rule = (SelfExtend(group=2, window=4), None)
    expected = rotary_attention(*inputs().make(), rotary=RotaryEmbedding(8), distance=rule[0])
    monkeypatch.undo()
    got = rotary_attention(*inputs().make(), rotary=RotaryEmbedding(8), distance=rule[0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
