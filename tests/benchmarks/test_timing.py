"""Calls take turns, and what is kept of them."""

from benchmarks.timing import Sample, _summary, interleaved


def test_calls_take_turns_and_each_begins_a_round_in_turn():
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = interleaved(calls, "cpu", seconds=0.0, least=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round is the warm-up
    assert {name: timing.runs for name, timing in timings.items()} == dict.fromkeys("abc", 3)


def test_rounds_fill_the_time_up_to_a_limit():
    timings = interleaved({"fast": lambda: None}, "cpu", seconds=60.0, least=3, most=7)
    assert timings["fast"].runs == 7


def test_nothing_to_time_gives_nothing():
    assert interleaved({}, "cpu", seconds=1.0) == {}


def test_a_timing_is_the_median_and_the_spread_in_milliseconds():
    samples = [Sample(seconds, 2 * seconds) for seconds in (0.003, 0.001, 0.010)]
    assert _summary(samples) == (3.0, 1.0, 10.0, 6.0, 3)
