"""The compiled loops of the cells against steps in float64, written out here once more."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from ropewalk.kernels.newton_scan import newton_scan
from ropewalk.kernels.newton_scan import numba as loops
from ropewalk.kernels.newton_scan.numba.scratch import MOST_CHANNELS
from ropewalk.kernels.newton_scan.problem import Needs, Options, Problem

SIZES = {"tanh": (1, 1), "gru": (3, 4), "lstm": (3, 5)}
"""Gates and rows of weights."""
ALGORITHMS = ("sequential", "newton")
ALL = Needs(True, True, True)


def tanh_step(x, h, w):
    return torch.tanh(x[0] + w[0] * h)


def gru_step(x, h, w):
    r, z = torch.sigmoid(x[0] + w[0] * h), torch.sigmoid(x[1] + w[1] * h)
    n = torch.tanh(x[2] + r * (w[2] * h + w[3]))
    return (1 - z) * n + z * h


def lstm_step(x, state, w):
    c, h = state
    f = torch.sigmoid(x[0] + w[0] * h + w[3] * c)
    new = f * c + (1 - f) * torch.tanh(x[1] + w[1] * h)
    return torch.stack([new, torch.sigmoid(x[2] + w[2] * h + w[4] * new) * new.tanh()])


STEPS = {"tanh": tanh_step, "gru": gru_step, "lstm": lstm_step}


@pytest.fixture(params=SIZES)
def cell(request):
    return request.param


def draw(cell, batch, time, channels, *, sequences=None, dtype=torch.float64, scale=0.7):
    """Inputs, weights and initial states that want gradients."""
    generator = torch.Generator().manual_seed(time)
    gates, rows = SIZES[cell]
    parts = (2,) if cell == "lstm" else ()

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn = (
        normal(batch, time, gates, channels),
        scale * normal(rows, channels),
        0.5 * normal(sequences or batch, *parts, channels),
    )
    return [x.to(dtype).requires_grad_() for x in drawn]


def stepped(cell, inputs, weights, initial, bounds=None):
    """The states in float64."""
    inputs, weights, initial = inputs.double(), weights.double(), initial.double()
    if bounds is None:
        pieces = [(row, 0, inputs.shape[1]) for row in range(inputs.shape[0])]
    else:
        pieces = [(0, *piece) for piece in pairwise(bounds)]
    rows = [[] for _ in range(inputs.shape[0])]
    for (row, begin, end), state in zip(pieces, initial, strict=True):
        for t in range(begin, end):
            state = STEPS[cell](inputs[row, t], state, weights)
            rows[row].append(state)
    return torch.stack([torch.stack(states) for states in rows])


def scanned(cell, drawn, **options):
    return newton_scan(*drawn, cell=cell, backend="numba", **options)


def gradients(states, drawn):
    upstream = torch.linspace(-1, 1, states.numel(), dtype=torch.float64).view(states.shape)
    return torch.autograd.grad(states, drawn, upstream.to(states.dtype))


def relative(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bounds", [None, (0, 0, 3, 70, 71)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_and_gradients(cell, algorithm, bounds, dtype):
    sequences = None if bounds is None else len(bounds) - 1
    drawn = draw(cell, 2 if bounds is None else 1, 71, 37, sequences=sequences, dtype=dtype)
    expected = stepped(cell, *drawn, bounds)
    cu = None if bounds is None else torch.tensor(bounds)
    states = scanned(cell, drawn, algorithm=algorithm, cu_seqlens=cu).states
    limit = 1e-6 if dtype == torch.float32 else 1e-13
    assert relative(states, expected) < limit
    for found, wanted in zip(gradients(states, drawn), gradients(expected, drawn), strict=True):
        assert found.dtype == dtype
        assert relative(found, wanted) < 3 * limit


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_short_sequences(cell, time, algorithm):
    drawn = draw(cell, 3, time, 5)
    result = scanned(cell, drawn, algorithm=algorithm)
    state = drawn[2].shape[1:]
    assert result.states.shape == (3, time, *state)
    if time == 1:
        assert relative(result.states, stepped(cell, *drawn)) < 1e-14
    found = torch.autograd.grad(result.states.sum(), drawn, allow_unused=True)
    assert [g.shape for g in found] == [x.shape for x in drawn]


def test_no_initial_state_is_zeros(cell):
    inputs, weights, initial = draw(cell, 2, 9, 5)
    zeros = torch.zeros_like(initial)
    for algorithm in ALGORITHMS:
        found = scanned(cell, (inputs, weights, None), algorithm=algorithm).states
        assert torch.equal(found, scanned(cell, (inputs, weights, zeros), algorithm=algorithm)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_weights", [False, True])
def test_half_precision_is_rounded_once(cell, dtype, wide_weights):
    inputs, weights, initial = draw(cell, 2, 60, 9, dtype=dtype)
    if wide_weights:
        weights, initial = (t.detach().float().requires_grad_() for t in (weights, initial))
    drawn = [inputs, weights, initial]
    expected, states = stepped(cell, *drawn), scanned(cell, drawn).states
    assert states.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(states, expected.to(dtype), rtol=eps, atol=1e-6)
    # The states that gates are computed from again were rounded.
    for found, wanted, x in zip(
        gradients(states, drawn), gradients(expected, drawn), drawn, strict=True
    ):
        assert found.dtype == x.dtype
        assert relative(found, wanted) < 2 * eps


def test_layouts(cell):
    inputs, weights, initial = (x.detach() for x in draw(cell, 2, 11, 5))
    states = loops.forward(Problem(inputs, weights, initial, cell), Options()).states
    v = torch.randn_like(states)
    plain = loops.backward(Problem(inputs, weights, initial, cell), states, v, ALL, Options())
    for order in ((1, 0, 2, 3), (0, 2, 1, 3), (3, 0, 1, 2)):
        back = torch.tensor(order).argsort().tolist()
        strided = inputs.permute(order).contiguous().permute(back)
        problem = Problem(strided, weights.mT.contiguous().mT, initial, cell)
        assert torch.equal(loops.forward(problem, Options()).states, states)
        moved = v.mT.contiguous().mT
        found = loops.backward(problem, states, moved, ALL, Options())
        assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


def test_inputs_that_are_broadcast(cell):
    inputs, weights, initial = draw(cell, 2, 11, 5)
    constant = inputs[:, :1].expand_as(inputs)
    found = scanned(cell, (constant, weights, initial)).states
    assert relative(found, stepped(cell, constant, weights, initial)) < 1e-13


def test_more_channels_than_a_block_has(cell):
    drawn = draw(cell, 1, 4, MOST_CHANNELS + 3)
    expected = stepped(cell, *drawn)
    for algorithm in ALGORITHMS:
        assert relative(scanned(cell, drawn, algorithm=algorithm).states, expected) < 1e-13
    found = gradients(scanned(cell, drawn).states, drawn)
    for got, wanted in zip(found, gradients(expected, drawn), strict=True):
        assert relative(got, wanted) < 1e-13


@pytest.mark.parametrize("bounds", [None, (0, 40, 40, 41, 300)])
def test_threads_change_no_state(cell, monkeypatch, bounds):
    sequences = None if bounds is None else len(bounds) - 1
    drawn = draw(cell, 2 if bounds is None else 1, 300, 70, sequences=sequences)
    drawn = [x.detach().float().requires_grad_() for x in drawn]
    cu = None if bounds is None else torch.tensor(bounds)

    def everything():
        newton, states = (
            scanned(cell, drawn, algorithm=algorithm, cu_seqlens=cu).states
            for algorithm in ("newton", "sequential")
        )
        return newton, states, *gradients(states, drawn)

    alone = everything()
    monkeypatch.setattr("ropewalk.kernels.compiled.threads.WORTH_A_THREAD", 100.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    several, again = everything(), everything()
    assert all(torch.equal(*pair) for pair in zip(several, again, strict=True))
    for index, (found, expected) in enumerate(zip(several, alone, strict=True)):
        if index == 0:  # blocks of channels are iterated together
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        elif index == 3:  # the weights' gradient is summed by thread
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(found, expected)


def test_a_long_sum_of_the_weights_gradient(cell):
    """Every step adds about as much: a plain float32 sum would lose three digits."""
    inputs, weights, initial = (x.float() for x in draw(cell, 1, 200, 3))
    inputs = inputs.repeat(1, 500, 1, 1)
    drawn = [x.detach().requires_grad_() for x in (inputs, weights, initial)]
    wide = [x.detach().double().requires_grad_() for x in drawn]
    found, expected = (
        torch.autograd.grad(scanned(cell, given).states.sum(), given[1])[0]
        for given in (drawn, wide)
    )
    assert relative(found, expected) < 1e-6


def steep(cell, weights):
    """Recurrent weights up to 3, or of standard deviation 2."""
    if cell == "tanh":
        return torch.linspace(-3, 3, weights.shape[1], dtype=weights.dtype)[None]
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(weights.shape, generator=generator, dtype=weights.dtype)


@pytest.mark.parametrize("window", [None, 16, 200])
def test_steep_cells_end_exact(cell, window):
    """Plain Newton overflows on these although the sequences are stable."""
    inputs, weights, initial = (x.detach() for x in draw(cell, 2, 512, 33))
    wide = (inputs, steep(cell, weights), initial)
    single = tuple(x.float() for x in wide)
    exact = scanned(cell, wide, algorithm="sequential").states
    plain = scanned(cell, single, algorithm="sequential")
    newton = scanned(cell, single, algorithm="newton", window=window)
    # Both round as often, and the cells make some roundings grow.
    limit = 5 * float((plain.states - exact).abs().max()) + 1e-6
    torch.testing.assert_close(newton.states.double(), exact, rtol=0, atol=limit)
    assert limit < 1e-2
    assert int(newton.iterations.max()) <= (window or loops.launch.WINDOW)
    assert not plain.iterations.any()
    assert not plain.residual.any()
    again = scanned(cell, wide, algorithm="newton", window=window).states
    torch.testing.assert_close(again, exact, rtol=0, atol=1e-9)


def test_after_k_iterations_the_first_k_states_are_exact(cell):
    drawn = [x.detach() for x in draw(cell, 2, 12, 5, scale=3.0)]
    expected = stepped(cell, *drawn)
    for k in (1, 2, 5, 12):
        found = scanned(cell, drawn, algorithm="newton", window=12, max_iterations=k)
        assert found.states.isfinite().all()
        assert relative(found.states[:, :k], expected[:, :k]) < 1e-14
        assert int(found.iterations.max()) <= k


@pytest.mark.parametrize("max_iterations", [1, 2, 3])
def test_the_residual_of_what_did_not_converge_is_that_of_the_states(cell, max_iterations):
    drawn = [x.detach() for x in draw(cell, 2, 40, 5, scale=2.0)]
    found = scanned(cell, drawn, algorithm="newton", window=20, max_iterations=max_iterations)
    before = torch.cat([drawn[2].unsqueeze(1), found.states[:, :-1]], dim=1)
    left = torch.stack(
        [
            torch.stack([STEPS[cell](x, h, drawn[1]) for x, h in zip(*row, strict=True)])
            for row in zip(drawn[0], before, strict=True)
        ]
    )
    worst = (left - found.states).abs().amax(dim=1)
    worst = worst.amax(dim=1) if cell == "lstm" else worst
    assert (found.iterations == max_iterations).all()
    torch.testing.assert_close(found.residual, worst.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_not_a_number_stays_in_its_chain(cell, algorithm):
    inputs, weights, initial = (x.detach().float() for x in draw(cell, 2, 30, 20))
    expected = scanned(cell, (inputs, weights, initial), algorithm=algorithm).states
    inputs[1, 10, :, 7] = float("nan")
    found = scanned(cell, (inputs, weights, initial), algorithm=algorithm)
    assert found.states[1, 10:, ..., 7].isnan().all()
    good = torch.ones_like(expected, dtype=torch.bool)
    good[1, 10:, ..., 7] = False
    torch.testing.assert_close(found.states[good], expected[good], rtol=0, atol=1e-6)
    if algorithm == "newton":
        assert found.residual.isnan().nonzero().tolist() == [[1, 7]]


def test_infinite_inputs_saturate(cell):
    inputs, weights, initial = (x.detach().float() for x in draw(cell, 1, 8, 4))
    inputs[0, 3, 0] = float("inf")
    inputs[0, 5, 0] = float("-inf")
    found = scanned(cell, (inputs, weights, initial)).states
    torch.testing.assert_close(found.double(), stepped(cell, inputs, weights, initial))


def test_what_they_cannot_take():
    assert loops.unsupported(torch.zeros(1)) is None
    assert "meta" in (loops.unsupported(torch.zeros(1, device="meta")) or "")
    assert "complex64" in (loops.unsupported(torch.zeros(1, dtype=torch.complex64)) or "")


def test_calls_from_several_threads_do_not_meet(cell):
    problems = [[x.detach() for x in draw(cell, 2, time, 9)] for time in (200, 201, 202, 203)]
    expected = [scanned(cell, drawn).states for drawn in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda drawn: scanned(cell, drawn).states, problems)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
