"""The schedule covers every visible pair with its branch, and looks at little else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.kernels.rotary_attention.schedule import (
    Piece,
    Run,
    Visibility,
    branch_of_pairs,
    hidden_pairs,
    key_runs,
    pieces,
)


def visibility(queries, keys, **options):
    settings = {
        "query_positions": torch.arange(keys - queries, keys)[None],
        "key_positions": torch.arange(keys)[None],
        "edges": (),
        "unit": 1,
        "causal": True,
        "sliding_window": None,
        "attention_mask": None,
    }
    return Visibility(**{**settings, **options})


def test_rerope_is_far_then_straddling_then_near_then_diagonal():
    runs = key_runs(visibility(100, 100, edges=(16,)), 80, 88)
    assert runs == [
        Run(0, 65, 1, 1, masked=False),
        Run(65, 72, 0, 1, masked=False),
        Run(72, 81, 0, 0, masked=False),
        Run(81, 88, 0, 0, masked=True),
    ]


def test_a_sliding_window_skips_far_keys():
    runs = key_runs(visibility(100, 100, sliding_window=10), 80, 88)
    assert (runs[0].start, runs[-1].stop) == (71, 88)


def test_a_step_of_decoding_has_no_straddling_run():
    runs = key_runs(visibility(1, 100, edges=(16,)), 0, 1)
    assert runs == [Run(0, 84, 1, 1, masked=False), Run(84, 100, 0, 0, masked=False)]


def test_left_padding_cancels_row_by_row():
    at = torch.arange(100) - torch.tensor([[0], [30]])
    padded = visibility(100, 100, edges=(16,), query_positions=at, key_positions=at)
    assert key_runs(padded, 80, 88) == key_runs(visibility(100, 100, edges=(16,)), 80, 88)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_runs_cover_what_is_visible(data):
    draw = data.draw
    batch, keys = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    queries = draw(st.integers(1, keys))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shuffled = draw(st.booleans())

    def positions(length):
        if not shuffled:
            return torch.arange(keys - length, keys).expand(batch, length)
        return torch.randint(0, 30, (batch, length), generator=generator)

    edges = draw(st.sampled_from([(), (1,), (5,), (1, 2), (2, 7)]))
    v = visibility(
        queries,
        keys,
        query_positions=positions(queries),
        key_positions=positions(keys),
        edges=edges,
        unit=draw(st.sampled_from([1, 4])),
        causal=draw(st.booleans()),
        sliding_window=draw(st.sampled_from([None, 1, 6])),
    )
    whole = Piece(0, queries, Run(0, keys, 0, len(edges), masked=True))
    branch = branch_of_pairs(v, whole).expand(batch, queries, keys)
    hidden = hidden_pairs(v, whole).expand(batch, queries, keys)
    covered = torch.zeros(queries, keys, dtype=torch.bool)
    for start, stop, run in pieces(v, draw(st.sampled_from([(4,), (9, 4, 2), (64, 1)]))):
        block = (..., slice(start, stop), slice(run.start, run.stop))
        assert not covered[block].any()
        covered[block] = True
        seen = branch[block][~hidden[block]]
        assert ((seen >= run.nearest) & (seen <= run.farthest)).all()
        assert run.masked or not hidden[block].any()
    assert hidden[:, ~covered].all()


def test_coarse_blocks_take_what_is_uniform():
    sizes = (32, 8)
    plan = pieces(visibility(128, 128, edges=(16,)), sizes)
    uniform = [p for p in plan if p.run.uniform and p.stop - p.start == 32]
    # Of the last 32 queries, all are far from the first 81 keys.
    assert Piece(96, 128, Run(0, 81, 1, 1, masked=False)) in uniform
    assert all(p.stop - p.start == 8 for p in plan if not p.run.uniform)
