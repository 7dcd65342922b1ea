"""The other processes, each with an exact model: unmasking, editing, cold, Poisson flow."""

import itertools
import math

import pytest
import torch

from ropewalk.blocks.diffusion.process import Cold, Edit, Mask, PoissonFlow
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, RectifiedFlow

VOCABULARY, LENGTH, COUNT = 3, 3, 10000


@pytest.fixture(scope="module")
def joint():
    """A strongly dependent p(x₁, x₂, x₃): (27 sequences, their probabilities)."""
    generator = torch.Generator().manual_seed(0)
    sequences = everything(VOCABULARY)
    logits = 2.5 * torch.randn(len(sequences), generator=generator, dtype=torch.float64)
    return sequences, logits.softmax(0)


def histogram(x):
    return torch.bincount(code(x, VOCABULARY), minlength=27).double() / len(x)


def posterior(joint, likelihood):
    """log p(x₀ᵢ = v | x_t) from likelihoods (batch, sequences) of x_t under each sequence."""
    sequences, probabilities = joint
    weights = likelihood * probabilities
    hot = torch.nn.functional.one_hot(sequences, VOCABULARY).double()
    share = torch.einsum("bs,siv->biv", weights, hot)
    return (share / weights.sum(-1)[:, None, None]).log().clamp(min=-80)


def code(x, states):
    """The number of each sequence among all of so many states."""
    return (x * torch.tensor([states**2, states, 1])).sum(-1)


def everything(states):
    return torch.tensor(list(itertools.product(range(states), repeat=LENGTH)))


def unmasking(joint):
    """The exact denoiser of a mask process: conditioning by counting, for all 64 states at once."""
    states = everything(VOCABULARY + 1)
    fits = (states[:, None] == joint[0]) | (states[:, None] == VOCABULARY)
    table = posterior(joint, fits.all(-1).double())
    return lambda x, t, condition: table[code(x, VOCABULARY + 1)]


@pytest.mark.parametrize(
    ("schedule", "solver", "stochasticity"),
    [
        (RectifiedFlow(), "ancestral", None),
        (Cosine(), "euler", 0.0),
        (RectifiedFlow(), "euler", 0.2),
    ],
    ids=["ancestral", "euler", "remasking"],
)
def test_unmasking_gives_the_joint_distribution(joint, schedule, solver, stochasticity):
    found = histogram(
        sample(
            unmasking(joint),
            Mask(VOCABULARY, schedule),
            (COUNT, LENGTH),
            steps=100,
            solver=solver,
            stochasticity=stochasticity,
            generator=torch.Generator().manual_seed(1),
        )
    )
    # Half the sum of |differences|: about √(27/2πn) = .02 from sampling; two tokens that are
    # unmasked in one step are drawn apart.
    assert 0.5 * (found - joint[1]).abs().sum() < 0.05
    # It could fail: drawing the tokens apart altogether is far away.
    apart = sample(unmasking(joint), Mask(VOCABULARY, schedule), (COUNT, LENGTH), steps=1)
    assert 0.5 * (histogram(apart) - joint[1]).abs().sum() > 0.2


def test_masked_shares_follow_the_schedule(joint):
    """What is masked at s was so at t with probability m_s/m_t, and all of it is m_s."""
    process, seen = Mask(VOCABULARY, Cosine()), []

    def remember(step, x, x0, t):
        seen.append(((x == VOCABULARY).double().mean().item(), float(process.schedule.severity(t))))

    sample(unmasking(joint), process, (4000, LENGTH), steps=8, callback=remember)
    for share, rate in seen:
        assert abs(share - rate) < 4 * 0.5 / math.sqrt(4000 * LENGTH)
    assert seen[-1] == (0.0, 0.0)


def test_editing_gives_the_joint_distribution(joint):
    process = Edit(VOCABULARY, RectifiedFlow())

    def model(x, t, condition):
        rate, states = float(process.rate(x[:1], t[:1])), joint[0]
        each = torch.where(states[:, None] == states, 1 - rate, rate / (VOCABULARY - 1))
        return posterior(joint, each.double().prod(-1))[code(x, VOCABULARY)]

    found = histogram(sample(model, process, (COUNT // 2, LENGTH), steps=120, solver="ancestral"))
    assert 0.5 * (found - joint[1]).abs().sum() < 0.05


def test_cold_temperature_takes_the_likeliest_token(joint):
    sequences, _ = joint
    likeliest = posterior(joint, torch.ones(1, 27, dtype=torch.float64))[0].argmax(-1)
    found = sample(
        unmasking(joint), Mask(VOCABULARY, Cosine()), (50, LENGTH), steps=1, temperature=1e-4
    )
    assert torch.equal(found, likeliest.expand(50, LENGTH))
    assert found.dtype == sequences.dtype


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_cold_sampling_is_exact_for_affine_degradations_with_any_model(steps):
    """D(x, t) = x + t·e is undone though x̂₀ is wrong (arXiv 2208.09392, §4.2)."""
    direction, data = torch.randn(2, 1, 5, dtype=torch.float64)
    process = Cold(lambda x0, severity: x0 + severity * direction, RectifiedFlow())
    x0 = data.expand(4, 5)
    start = process.corrupt(x0, process.fresh(x0), 1.0)

    def wrong(x, t, condition):
        return torch.sin(3 * x) + t[:, None]

    improved = sample(wrong, process, (4, 5), steps=steps, start=start)
    torch.testing.assert_close(improved, x0, rtol=0, atol=1e-12)
    naive = sample(wrong, process, (4, 5), steps=steps, start=start, solver="renoise")
    assert (naive - x0).abs().max() > 0.1


def test_cold_sampling_with_the_right_data_is_exact_for_every_degradation():
    process = Cold(
        lambda x0, severity: x0 * (1 - severity) ** 2 + torch.sin(severity * x0), Cosine()
    )
    x0 = torch.randn(4, 5, dtype=torch.float64)
    start = process.corrupt(x0, process.fresh(x0), 1.0)
    for solver in ("euler", "renoise"):
        found = sample(lambda x, t, y: x0, process, (4, 5), steps=6, start=start, solver=solver)
        torch.testing.assert_close(found, x0, rtol=0, atol=1e-12)


POINTS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
CHARGES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def field(x, radius, added):
    """The electric field of the charges in N + D dimensions, and x̂₀ of its lines."""
    away = x[:, None] - POINTS
    squared = away.square().sum(-1) + radius**2
    strength = CHARGES * squared ** (-(x.shape[1] + added) / 2)
    along = torch.einsum("bk,bki->bi", strength, away)
    upwards = radius * strength.sum(-1, keepdim=True)
    share = strength / strength.sum(-1, keepdim=True)
    return along / upwards, share @ POINTS


def point_model(schedule, added):
    return lambda x, t, y: field(x, float(schedule.sigma(t[0])) * math.sqrt(added), added)[1]


@pytest.mark.parametrize("added", [1, 8, 128])
def test_poisson_flow_follows_the_lines_of_the_field(added):
    """Euler's step moves x by dx/dr = E_x/E_r of the charges themselves, r = σ√D."""
    schedule = Karras()
    process = PoissonFlow(added, schedule, "x0")
    x = 3 * torch.randn(6, 2, dtype=torch.float64)
    t, s = 0.6, 0.5
    moved = sample(point_model(schedule, added), process, (6, 2), times=[t, s], start=x)
    radius, smaller = (float(schedule.sigma(u)) * math.sqrt(added) for u in (t, s))
    expected = x + (smaller - radius) * field(x, radius, added)[0]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "stochasticity"), [("heun", 0.0), ("dpmpp_2m", None), ("euler", 0.5)]
)
@pytest.mark.parametrize("added", [4, 64])
def test_poisson_flow_ends_on_the_charges_in_their_proportions(added, solver, stochasticity):
    schedule, count = Karras(), 3000
    samples = sample(
        point_model(schedule, added),
        PoissonFlow(added, schedule, "x0"),
        (count, 2),
        steps=40,
        solver=solver,
        stochasticity=stochasticity,
        dtype=torch.float64,
    )
    distance, nearest = (samples[:, None] - POINTS).norm(dim=-1).min(-1)
    assert distance.quantile(0.99) < 0.05
    found = torch.bincount(nearest, minlength=3).double() / count
    torch.testing.assert_close(found, CHARGES, rtol=0, atol=4 * 0.5 / math.sqrt(count) + 0.02)
