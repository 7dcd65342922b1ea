"""What is particular to each linear recurrence: its initialisation and its identities."""

import math

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent.linear import LRU, SLRU, MinGRU


@pytest.mark.parametrize("kind", [LRU, SLRU])
@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.5, 0.9), (0.99, 0.999), (0.9, 1.0)])
def test_squared_radii_are_uniform_on_the_ring(kind, r_min, r_max):
    torch.manual_seed(0)
    layer = kind(1, 20_000, r_min=r_min, r_max=r_max)
    squares = layer.eigenvalues.detach().abs().double().square()
    uniform = (squares - r_min**2) / (r_max**2 - r_min**2)
    assert uniform.min() > -1e-2
    assert uniform.max() < 1 + 1e-2
    expected = torch.linspace(0, 1, len(uniform), dtype=torch.float64)
    assert (uniform.sort().values - expected).abs().max() < 0.015  # Kolmogorov–Smirnov at 1e-3
    variance = layer.gamma_log.double().exp().square() / (1 - squares)
    assert float(variance.median().detach()) == pytest.approx(1.0, abs=1e-3)
    assert layer.gamma_log.isfinite().all()


@pytest.mark.parametrize("max_phase", [2 * math.pi, math.pi / 10])
def test_phases_are_uniform(max_phase):
    torch.manual_seed(0)
    phases = LRU(1, 20_000, max_phase=max_phase).theta_log.detach().exp().sort().values / max_phase
    assert (phases - torch.linspace(0, 1, 20_000)).abs().max() < 0.015


@pytest.mark.parametrize("nu", [-200.0, -5.0, 0.0, 3.0, 80.0])
def test_eigenvalues_stay_inside_the_disc_wherever_training_goes(nu):
    for layer in (LRU(2, 3), SLRU(2, 3)):
        with torch.no_grad():
            layer.nu_log.fill_(nu)
        outputs, _ = layer(torch.randn(1, 50, 2))
        assert layer.eigenvalues.abs().max() <= 1
        assert outputs.isfinite().all()


def test_the_state_of_white_noise_has_unit_variance():
    torch.manual_seed(0)
    layer = LRU(16, 400, r_min=0.5, r_max=0.95)
    _, last = layer(torch.randn(64, 300, 16))
    assert last.detach().abs().square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_a_long_decay_does_not_lose_its_last_steps():
    """λ^(−k) overflows after 30 steps here; a scan that multiplies forwards does not notice."""
    layer = SLRU(1, 1)
    with torch.no_grad():
        layer.nu_log.fill_(math.log(3.0))  # λ = e⁻³
        for parameter in (layer.gamma_log, layer.skip):
            parameter.zero_()
        for weight in (layer.input_weight, layer.output_weight):
            weight.fill_(1.0)
    outputs, _ = layer(torch.ones(1, 2000, 1))
    limit = 1 / (1 - math.exp(-3.0))
    torch.testing.assert_close(outputs[0, 10:, 0], torch.full((1990,), limit))


def test_an_lru_without_phases_is_an_slru():
    torch.manual_seed(0)
    real, layer = SLRU(3, 4, r_min=0.3), LRU(3, 4)
    with torch.no_grad():
        layer.nu_log.copy_(real.nu_log)
        layer.gamma_log.copy_(real.gamma_log)
        layer.theta_log.fill_(-math.inf)
        layer.skip.copy_(real.skip)
        layer.input_weight.zero_()[::2] = real.input_weight
        layer.output_weight.normal_()[:, ::2] = real.output_weight
    inputs = torch.randn(2, 20, 3)
    torch.testing.assert_close(layer(inputs)[0], real(inputs)[0])


def test_an_lru_counts_modulo():
    """|λ| near 1 and a phase of 2π/4: an impulse returns every fourth step."""
    layer = LRU(1, 1)
    with torch.no_grad():
        layer.nu_log.fill_(-100.0)
        layer.theta_log.fill_(math.log(math.pi / 2))
        layer.gamma_log.zero_()
        layer.skip.zero_()
        layer.input_weight.copy_(torch.tensor([[1.0], [0.0]]))
        layer.output_weight.copy_(torch.tensor([[1.0, 0.0]]))
    impulse = torch.zeros(1, 9, 1)
    impulse[0, 0] = 1
    expected = torch.tensor([1.0, 0, -1, 0, 1, 0, -1, 0, 1])
    torch.testing.assert_close(layer(impulse)[0][0, :, 0], expected, rtol=0, atol=1e-6)


def test_a_min_gru_is_a_gru_whose_gates_do_not_see_the_state():
    torch.manual_seed(0)
    ours, gru = MinGRU(3, 4), nn.GRU(3, 4, batch_first=True)
    weight, bias = gru.get_parameter("weight_ih_l0"), gru.get_parameter("bias_ih_l0")
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        for mine, theirs in ((ours.weight_ih, weight), (ours.get_parameter("bias_ih"), bias)):
            mine[4:] *= 1e-3  # where tanh is the identity
            theirs[4:] = mine
            theirs[4:8].neg_()  # torch's z keeps the state: 1 − ours
    inputs, state = torch.randn(2, 30, 3), torch.randn(2, 4)
    theirs, last = gru(inputs, state[None])
    outputs, final = ours(inputs, state)
    torch.testing.assert_close(outputs, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(final, last[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("positive", [False, True])
def test_a_min_gru_takes_a_negative_initial_state(positive):
    """In log space its logarithm would not exist, and the parallel form would leave the loop's."""
    torch.manual_seed(0)
    layer = MinGRU(3, 4, positive=positive)
    inputs, state = torch.randn(2, 40, 3), torch.full((2, 4), -2.0)
    outputs, last = layer(inputs, state)
    exact = []
    for t in range(40):
        output, state = layer.step(inputs[:, t], state)
        exact.append(output)
    torch.testing.assert_close(outputs, torch.stack(exact, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-6)
    assert (outputs[:, 0] < 0).any()


def test_positive_candidates_are_those_of_the_paper():
    torch.manual_seed(0)
    layer = MinGRU(3, 4, positive=True, dtype=torch.float64)
    inputs = torch.randn(1, 25, 3, dtype=torch.float64)
    gate, candidate = nn.functional.linear(inputs, layer.weight_ih, layer.bias_ih).chunk(2, -1)
    log_candidate = torch.where(
        candidate >= 0, (candidate.relu() + 0.5).log(), nn.functional.logsigmoid(candidate)
    )
    log_keep = nn.functional.logsigmoid(-gate).cumsum(1)
    log_new = nn.functional.logsigmoid(gate) + log_candidate
    theirs = (log_keep + (log_new - log_keep).logcumsumexp(1)).exp()  # the paper's log space
    torch.testing.assert_close(layer(inputs)[0], theirs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LRU, {"r_min": 0.9, "r_max": 0.9}),
        (LRU, {"r_min": -0.1}),
        (SLRU, {"r_max": 1.1}),
        (LRU, {"max_phase": 0.0}),
        (LRU, {"max_phase": 7.0}),
    ],
)
def test_refused_rings(kind, options):
    with pytest.raises(ValueError, match="expected"):
        kind(3, 4, **options)
