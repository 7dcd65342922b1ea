"""Packed sequences equal one call after another, forward and backward, on every CPU backend."""

from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ropewalk.blocks.rotary import DynamicNTK, LogN, ReRoPE, RotaryEmbedding
from ropewalk.kernels import packing
from ropewalk.kernels.rotary_attention import rotary_attention, varlen

ROTARY = RotaryEmbedding(8)
CPU_BACKENDS = ("auto", "reference", "flash")
# Sequences without queries, without keys, without both, and with fewer keys than queries.
QUERY_LENGTHS, KEY_LENGTHS = (5, 0, 7, 4, 0, 1, 6), (9, 4, 7, 0, 0, 3, 2)


def starts(lengths, dtype=torch.int32):
    return torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(dtype)


def packed(inputs, query_lengths=QUERY_LENGTHS, key_lengths=KEY_LENGTHS, **shape):
    shape = {"queries": sum(query_lengths), "keys": sum(key_lengths), **shape}
    return inputs(batch=1, **shape).make(grad=True)


def one_by_one(function, tensors, query_starts, key_starts):
    """Output and logsumexp of each sequence by `function`, put together."""
    query, key, value = tensors
    bounds = zip(pairwise(query_starts.tolist()), pairwise(key_starts.tolist()), strict=True)
    parts = [
        function(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d])
        for (a, b), (c, d) in bounds
        if a < b
    ]
    return tuple(torch.cat(x, 2) for x in zip(*parts, strict=True))


def assert_alike(got, expected, tensors, tolerance):
    """Outputs, logsumexps and, of a sum of both, gradients."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance)
    gradients = []
    for (output, lse), again in ((got, False), (expected, True)):
        finite = lse.masked_fill(lse == -torch.inf, 0).sum()
        loss = output.square().sum() + finite
        gradients.append(torch.autograd.grad(loss, tensors, retain_graph=again))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("options", [{}, {"log_n": LogN(4)}, {"sinks": torch.arange(4.0)}], ids=str)
def test_equals_the_oracle_sequence_by_sequence(oracle, inputs, rule, backend, options):
    tensors = packed(inputs)
    places = starts(QUERY_LENGTHS), starts(KEY_LENGTHS)

    def alone(*sequence):
        if sequence[1].shape[2] == 0:  # the oracle has no last key to sit at
            options_ = {**options, "query_positions": torch.arange(sequence[0].shape[2])}
            return oracle(*sequence, rotary=ROTARY, relative=rule[1], **options_)
        return oracle(*sequence, rotary=ROTARY, relative=rule[1], **options)

    got = rotary_attention(
        *tensors, rotary=ROTARY, distance=rule[0], backend=backend, return_logsumexp=True,
        cu_seqlens_query=places[0], cu_seqlens_key=places[1], **options,
    )  # fmt: skip
    assert_alike(got, one_by_one(alone, tensors, *places), tensors, 1e-11)


def test_rows_without_keys_give_zeros_and_minus_infinity(inputs, rule):
    output, lse = rotary_attention(
        *packed(inputs), rotary=ROTARY, distance=rule[0], return_logsumexp=True,
        cu_seqlens_query=starts(QUERY_LENGTHS), cu_seqlens_key=starts(KEY_LENGTHS),
    )  # fmt: skip
    # The fourth sequence has no key; the last has six queries and two keys.
    without = torch.zeros(sum(QUERY_LENGTHS), dtype=torch.bool)
    without[12:16] = without[17:21] = True
    assert (output[:, :, without] == 0).all()
    assert torch.equal(lse == -torch.inf, without.expand_as(lse))


def test_keys_are_the_queries_tokens_by_default(inputs, rule):
    lengths = (3, 0, 11, 5)
    tensors = packed(inputs, lengths, lengths)
    options = {"rotary": ROTARY, "distance": rule[0]}
    at = starts(lengths, torch.int64)
    got = rotary_attention(*tensors, cu_seqlens_query=at, **options)
    assert torch.equal(
        got, rotary_attention(*tensors, cu_seqlens_query=at, cu_seqlens_key=at, **options)
    )


def test_one_sequence_is_the_dense_problem(inputs, rule):
    tensors = packed(inputs, (19,), (19,))
    options = {"rotary": ROTARY, "distance": rule[0], "return_logsumexp": True}
    got = rotary_attention(*tensors, cu_seqlens_query=starts((19,)), **options)
    for a, b in zip(got, rotary_attention(*tensors, **options), strict=True):
        assert torch.equal(a, b)


def test_explicit_positions_are_taken_as_given(inputs, rule):
    """Here: positions that run on from one sequence to the next."""
    lengths = (6, 8)
    tensors, at = packed(inputs, lengths, lengths), torch.arange(14)
    options = {"rotary": ROTARY, "distance": rule[0], "return_logsumexp": True}
    got = rotary_attention(
        *tensors, cu_seqlens_query=starts(lengths), query_positions=at, key_positions=at, **options
    )
    parts = []
    for span in (slice(0, 6), slice(6, 14)):
        own = [x[:, :, span] for x in tensors]
        where = {"query_positions": at[span], "key_positions": at[span]}
        parts.append(rotary_attention(*own, **where, **options))
    expected = tuple(torch.cat(x, 2) for x in zip(*parts, strict=True))
    assert_alike(got, expected, tensors, 1e-11)
    # Queries alone at their sequence's last key, as without packing.
    for a, b in zip(
        rotary_attention(*tensors, cu_seqlens_query=starts(lengths), key_positions=at, **options),
        got,
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_frequencies_follow_the_longest_sequence(inputs):
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(factor=2.0, original_length=4))
    lengths = (3, 11, 5)
    tensors = packed(inputs, lengths, lengths)
    options = {"rotary": rotary, "distance": ReRoPE(6)}
    got = rotary_attention(*tensors, cu_seqlens_query=starts(lengths), **options)
    for length, equal in ((11, True), (19, False)):
        other = rotary_attention(
            *tensors, cu_seqlens_query=starts(lengths), length=length, **options
        )
        assert torch.allclose(got, other, rtol=0, atol=1e-12) == equal


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiles_as_one_graph(inputs, rule, backend, attention):
    torch.compiler.reset()

    def call(query, key, value, query_starts, key_starts):
        return rotary_attention(
            query, key, value, rotary=ROTARY, distance=rule[0], backend=attention,
            cu_seqlens_query=query_starts, cu_seqlens_key=key_starts, return_logsumexp=True,
        )  # fmt: skip

    tensors = packed(inputs)
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for lengths in (QUERY_LENGTHS, QUERY_LENGTHS[::-1]):
        places = starts(lengths), starts(KEY_LENGTHS)
        assert_alike(compiled(*tensors, *places), call(*tensors, *places), tensors, 1e-11)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_lengths_in_float32(inputs, rule, data):
    draw = data.draw
    sequences = draw(
        st.lists(st.tuples(st.integers(0, 70), st.integers(0, 90)), min_size=1, max_size=5),
        "sequences",
    )
    lengths = tuple(zip(*sequences, strict=True))
    kv_heads = draw(st.integers(1, 2), "kv_heads")
    tensors = packed(
        inputs, *lengths, dtype=torch.float32, kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 3), "groups"), seed=draw(st.integers(0, 99), "seed"),
    )  # fmt: skip
    if not sum(lengths[0]):
        return
    places = starts(lengths[0]), starts(lengths[1])

    def alone(*sequence):
        double = (x.double() for x in sequence)
        return rotary_attention(
            *double, rotary=ROTARY, distance=rule[0], backend="reference", return_logsumexp=True
        )

    expected = one_by_one(alone, tensors, *places)
    for backend in CPU_BACKENDS:
        got = rotary_attention(
            *tensors, rotary=ROTARY, distance=rule[0], backend=backend, return_logsumexp=True,
            cu_seqlens_query=places[0], cu_seqlens_key=places[1],
        )  # fmt: skip
        assert_alike(got, expected, tensors, 1e-5)


def readings(monkeypatch):
    """Fills up with the lengths that are read."""
    read = []
    check = packing.check_bounds
    monkeypatch.setattr(packing, "check_bounds", lambda *given: read.append(given) or check(*given))
    return read


def test_lengths_are_read_once_for_all_layers(inputs, monkeypatch):
    """And again once they were changed in place, or come with another number of tokens."""
    read = readings(monkeypatch)
    # As if they were on a GPU.
    monkeypatch.setattr(packing, "worth_remembering", lambda cu: not cu.is_inference())
    lengths = (5, 14)
    tensors, places = packed(inputs, lengths, lengths), starts(lengths)

    def call(*tensors):
        return rotary_attention(
            *tensors, rotary=ROTARY, distance=ReRoPE(3), cu_seqlens_query=places
        )

    call(*tensors)
    first = call(*tensors)
    assert len(read) == 1
    places[1] = 7
    assert not torch.equal(call(*tensors), first)
    assert len(read) == 2
    with pytest.raises(ValueError, match="end at the number of tokens, 12, got 19"):
        call(*(x[:, :, :12] for x in tensors))
    places[1] = 25
    with pytest.raises(ValueError, match="25 followed by 19"):
        call(*tensors)
    with torch.inference_mode():
        places = starts(lengths)
        assert torch.equal(call(*tensors), first)


class Places(NamedTuple):
    """What decides about cumulative lengths, without a GPU to have them on."""

    is_cuda: bool
    inference: bool

    def is_inference(self):
        return self.inference


def test_only_lengths_on_a_gpu_are_remembered():
    for cuda, inference in product((False, True), repeat=2):
        wanted = cuda and not inference
        assert packing.worth_remembering(Places(cuda, inference)) == wanted


def test_lengths_that_numpy_wrote_over_are_read_again(inputs):
    """Their tensor's version does not tell."""
    lengths = (5, 14)
    tensors, numbers = packed(inputs, lengths, lengths), starts(lengths).numpy()
    places = torch.from_numpy(numbers)
    options = {"rotary": ROTARY, "distance": ReRoPE(3), "cu_seqlens_query": places}
    rotary_attention(*tensors, **options)
    numbers[1] = 25
    with pytest.raises(ValueError, match="25 followed by 19"):
        rotary_attention(*tensors, **options)


def dense_problems(monkeypatch):
    """Fills up with the dense problems that packed ones are cut into."""
    seen = []
    forward = varlen.forward

    def spy(dense, problem):
        return forward(lambda part: seen.append(part) or dense(part), problem)

    monkeypatch.setattr(varlen, "forward", spy)
    return seen


def test_neighbours_are_not_copied(inputs, monkeypatch):
    """Sequences of equal lengths that lie one after another are views of the packed tensors."""
    lengths = (5, 4, 4, 4, 0, 7)
    tensors, seen = packed(inputs, lengths, lengths), dense_problems(monkeypatch)
    rotary_attention(
        *tensors, rotary=ROTARY, distance=ReRoPE(3), backend="reference",
        cu_seqlens_query=starts(lengths),
    )  # fmt: skip
    assert [part.query.shape[::2] for part in seen] == [(1, 5), (3, 4), (1, 7)]
    for part in seen:
        for own, whole in ((part.query, tensors[0]), (part.key, tensors[1])):
            assert own.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("options", [{}, {"log_n": LogN(4)}, {"sinks": torch.arange(4.0)}], ids=str)
@pytest.mark.parametrize(
    ("query_lengths", "key_lengths"),
    [
        ((4,) * 9, (4,) * 9),
        ((3, 5, 3, 0, 5, 3, 3, 1), (3, 6, 4, 2, 6, 3, 3, 0)),
        ((2, 2, 2, 2), (0, 5, 0, 5)),
    ],
    ids=["alike", "mixed", "without keys"],
)
def test_equal_lengths_share_a_problem(
    inputs, monkeypatch, backend, options, query_lengths, key_lengths
):
    tensors = packed(inputs, query_lengths, key_lengths)
    places = starts(query_lengths), starts(key_lengths)
    call = {"rotary": ROTARY, "distance": ReRoPE(3), "backend": backend, **options}

    def alone(*sequence):
        return rotary_attention(*sequence, return_logsumexp=True, **call)

    expected = one_by_one(alone, tensors, *places)
    seen = dense_problems(monkeypatch)
    got = rotary_attention(
        *tensors, cu_seqlens_query=places[0], cu_seqlens_key=places[1], return_logsumexp=True,
        **call,
    )  # fmt: skip
    pairs = {pair for pair in zip(query_lengths, key_lengths, strict=True) if pair[0]}
    assert len(seen) == len(pairs)
    assert_alike(got, expected, tensors, 1e-11)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_problems_stay_small(inputs, monkeypatch, backend):
    """However many sequences there are."""
    lengths = (4,) * 9
    tensors = packed(inputs, lengths, lengths)
    options = {"rotary": ROTARY, "distance": ReRoPE(3), "backend": backend}
    whole = rotary_attention(*tensors, cu_seqlens_query=starts(lengths), **options)
    monkeypatch.setattr(varlen, "AT_ONCE", 2 * 4 * tensors[0].shape[1])
    seen = dense_problems(monkeypatch)
    cut = rotary_attention(*tensors, cu_seqlens_query=starts(lengths), **options)
    assert [len(part.query) for part in seen] == [2, 2, 2, 2, 1]
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_positions_of_equal_lengths_may_differ(inputs, rule, monkeypatch, backend):
    """Sequences share a problem where query and key are equally far apart, wherever they begin."""
    lengths = (4, 4, 6, 4)
    tensors = packed(inputs, lengths, lengths)
    # Multiples of every rule's unit.
    firsts = zip((0, 30, 60, 0), lengths, strict=True)
    keys = torch.cat([first + torch.arange(length) for first, length in firsts])
    # The last sequence's queries sit before its last key.
    queries = keys - torch.tensor([0] * 14 + [1] * 4)
    options = {"rotary": ROTARY, "distance": rule[0], "return_logsumexp": True}
    seen = dense_problems(monkeypatch)
    got = rotary_attention(
        *tensors, cu_seqlens_query=starts(lengths), query_positions=queries, key_positions=keys,
        backend=backend, **options,
    )  # fmt: skip
    assert [len(part.query) for part in seen] == [2, 1, 1]
    parts = []
    for span in (slice(0, 4), slice(4, 8), slice(8, 14), slice(14, 18)):
        own = [x[:, :, span] for x in tensors]
        where = {"query_positions": queries[span], "key_positions": keys[span]}
        parts.append(rotary_attention(*own, backend="reference", **where, **options))
    expected = tuple(torch.cat(x, 2) for x in zip(*parts, strict=True))
    assert_alike(got, expected, tensors, 1e-11)


@pytest.mark.parametrize("lengths", [(5, 9, 5, 0), (7, 7, 7, 7), (3, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("moved", [False, True])
def test_rows_of_equal_lengths_share_a_problem(inputs, rule, monkeypatch, lengths, moved):
    """Rows of a batch that see equally many keys; each at positions of its own or not."""
    tensors = inputs(batch=4, queries=3, keys=9).make(grad=True)
    at = {}
    if moved:
        keys = torch.arange(9) + torch.tensor([[0], [30], [60], [30]])  # multiples of every unit
        at = {"key_positions": keys, "query_positions": keys[:, :3]}
    options = {"rotary": ROTARY, "distance": rule[0], "return_logsumexp": True, **at}
    held = torch.tensor(lengths)
    expected = rotary_attention(*tensors, key_lengths=held, backend="reference", **options)
    seen = dense_problems(monkeypatch)
    got = rotary_attention(*tensors, key_lengths=held, backend="flash", **options)
    assert len(seen) == len(set(lengths))
    assert_alike(got, expected, tensors, 1e-11)
