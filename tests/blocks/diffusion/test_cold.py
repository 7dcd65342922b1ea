"""Cold diffusion: improved sampling, ready-made degradations, and where it starts from."""

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ropewalk.blocks.diffusion import Cold, Cosine, RectifiedFlow, universal_step
from ropewalk.blocks.diffusion.degradations import (
    DEGRADATIONS,
    Blur,
    Fade,
    Inpaint,
    Pixelate,
    degradation,
)

ZERO, ONE = torch.tensor(0.0), torch.tensor(1.0)
every = pytest.mark.parametrize("name", DEGRADATIONS)


def test_the_improved_step_is_exact_where_degradation_is_affine_in_t() -> None:
    direction = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    process = Cold(lambda x, s: x + s * direction, Cosine())
    x0, wrong = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t, s = torch.tensor([0.3, 0.6, 1.0]), torch.tensor([0.1, 0.0, 0.7])
    x_t = process.corrupt(x0, process.fresh(x0), t)
    x_s = universal_step(process, x_t, wrong, t, s, 0.0)
    assert (x_s - process.corrupt(x0, process.fresh(x0), s)).abs().max() <= 1e-14
    # Plain sampling, D(x̂₀, s), follows the error of x̂₀; it is what forgetting the residual gives.
    plain = universal_step(process, x_t, wrong, t, s, 1.0)
    torch.testing.assert_close(plain, process.corrupt(wrong, process.fresh(x0), s))


@every
def test_the_step_is_that_of_the_paper(name: str) -> None:
    process = Cold(name, RectifiedFlow())
    x_t, x0 = torch.randn(2, 3, 2, 6, 5, dtype=torch.float64)
    zero = torch.zeros_like(x0)
    expected = x_t - process.corrupt(x0, zero, 0.7) + process.corrupt(x0, zero, 0.4)
    assert (universal_step(process, x_t, x0, 0.7, 0.4, 0.0) - expected).abs().max() <= 1e-14


def test_the_loss_is_the_distance_of_the_data() -> None:
    process = Cold("fade", RectifiedFlow())
    x0, given = torch.randn(2, 3, 1, 4, 4)
    expected = (given - x0).abs().mean((1, 2, 3))
    loss = process.loss(given, x0, x0, torch.zeros_like(x0), 0.5)
    torch.testing.assert_close(loss, expected)


@every
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 13)])
def test_degradations_start_from_nothing(name: str, size: tuple[int, int]) -> None:
    x = torch.randn(3, 2, *size)
    torch.testing.assert_close(DEGRADATIONS[name](x, ZERO), x, rtol=0, atol=2e-6)


@every
def test_each_sample_has_its_own_severity(name: str) -> None:
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    severity = torch.tensor([0.0, 0.45, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    together = DEGRADATIONS[name](x, severity)
    for row in range(3):
        alone = DEGRADATIONS[name](x[row : row + 1], severity[row, 0, 0, 0])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-13)


def test_everything_is_gone_in_the_end() -> None:
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(Pixelate()(x, ONE.double()), mean)
    assert (Inpaint(fill=0.3)(x, ONE) == 0.3).all()
    assert (Fade(fill=-1.0)(x, ONE) == -1.0).all()
    left = Blur()(x, ONE.double()) - mean
    assert left.abs().max() < 0.01 * (x - mean).abs().max()
    torch.testing.assert_close(Blur(width=5.0)(x, ONE.double()), mean, rtol=0, atol=1e-9)


def test_blur_is_a_gaussian_with_mirrored_borders() -> None:
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)
    blurred = Blur(width=0.5)(x, torch.tensor(0.1).double())  # a deviation of two places
    expected = gaussian_filter(x[0, 0].numpy(), 2.0, mode="reflect", truncate=8.0)
    torch.testing.assert_close(blurred[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_blurs_add_up_and_keep_the_mean() -> None:
    x = torch.randn(2, 1, 7, 9, dtype=torch.float64)
    once = Blur()(x, torch.tensor(0.05).double())
    torch.testing.assert_close(once.mean((2, 3)), x.mean((2, 3)))
    twice = Blur()(once, torch.tensor(0.12).double())
    torch.testing.assert_close(twice, Blur()(x, torch.tensor(0.13).double()))


def test_pixelate_averages_blocks_and_mixes_between_sizes() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def pooled(size: int) -> Tensor:
        small = torch.nn.functional.avg_pool2d(x, size)
        return small.repeat_interleave(size, 2).repeat_interleave(size, 3)

    for level, size in ((1, 2), (2, 4), (3, 8)):
        ours = Pixelate()(x, torch.tensor(level / 3).double())
        torch.testing.assert_close(ours, pooled(size))
    between = Pixelate()(x, torch.tensor(1.25 / 3).double())
    torch.testing.assert_close(between, 0.75 * pooled(2) + 0.25 * pooled(4))
    ragged = Pixelate(axes=1)(torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor(0.5))
    torch.testing.assert_close(ragged, torch.tensor([[1.0, 1.0, 5.0]]))


@pytest.mark.parametrize("order", ["centre", "scan", "scattered"])
def test_inpaint_hides_as_many_places_as_the_severity_says(order: str) -> None:
    x = torch.rand(1, 2, 10, 10) + 1
    hidden = [Inpaint(order)(x, torch.tensor(k / 20)) == 0 for k in range(21)]
    for k, now in enumerate(hidden):
        assert now[0, 0].sum() == pytest.approx(5 * k, abs=1)
        assert torch.equal(now[0, 0], now[0, 1])
        assert k == 0 or (now | ~hidden[k - 1]).all()  # nothing reappears
    if order == "centre":
        assert hidden[2][0, 0, 4:6, 4:6].all()
    if order == "scan":
        assert hidden[2][0, 0, 0].all()
    if order == "scattered":  # a quarter hidden is about a quarter of each quadrant
        for rows in (slice(5), slice(5, 10)):
            for columns in (slice(5), slice(5, 10)):
                assert 4 <= hidden[5][0, 0, rows, columns].sum() <= 9


@every
def test_one_axis_is_enough_if_said(name: str) -> None:
    x = torch.randn(3, 7)
    if name == "fade":
        assert Fade()(x, ONE).shape == x.shape
        return
    kind = type(DEGRADATIONS[name])
    assert kind(axes=1)(x, torch.tensor(0.5)).shape == x.shape
    with pytest.raises(ValueError, match=r"axes="):
        kind()(x, torch.tensor(0.5))


def test_starts_are_examples_or_a_gaussian_like_them() -> None:
    data = torch.randn(50, 1, 6, 6, dtype=torch.float64)
    process = Cold("blur", RectifiedFlow())
    with pytest.raises(ValueError, match=r"process = process.fit\(data\)"):
        process.prior((2, 1, 6, 6))
    degraded = process.corrupt(data, process.fresh(data), 1.0)
    drawn = process.fit(data).prior((20, 1, 6, 6))
    nearest = (drawn[:, None] - degraded).abs().amax((2, 3, 4)).min(1).values
    assert (nearest == 0).all()

    drawn = process.fit(data, law="gaussian").prior((40_000, 1, 6, 6)).flatten(1)
    examples = degraded.flatten(1)
    mean, covariance = examples.mean(0), examples.T.cov(correction=0)
    scale = covariance.diagonal().max()
    assert (drawn.mean(0) - mean).abs().max() < 5 * (scale / 40_000).sqrt()
    assert (drawn.T.cov() - covariance).abs().max() < 5 * scale * (2 / 40_000) ** 0.5
    assert process.start is None  # `fit` leaves the process as it is

    with pytest.raises(ValueError, match="examples, gaussian"):
        process.fit(data, law="normal")
    with pytest.raises(ValueError, match="shape"):
        process.fit(data).prior((2, 3, 6, 6))
    with pytest.raises(ValueError, match="examples"):
        process.fit(data[:0])
    with pytest.raises(TypeError, match="floating-point"):
        process.fit(data.long())


def test_a_start_of_ones_own_is_called() -> None:
    def start(shape, *, generator, device, dtype) -> Tensor:
        return torch.full(shape, 0.5, device=device, dtype=dtype)

    process = Cold("fade", RectifiedFlow(), start=start)
    assert (process.prior((2, 3, 4), dtype=torch.float64) == 0.5).all()
    wrong = Cold("fade", RectifiedFlow(), start=lambda shape, **options: torch.zeros(3))
    with pytest.raises(ValueError, match="start: expected shape"):
        wrong.prior((2, 3, 4))


def test_degradations_of_another_shape_are_refused() -> None:
    process = Cold(lambda x, s: x[..., :-1], RectifiedFlow())
    with pytest.raises(ValueError, match="degradation: expected the shape"):
        process.corrupt(torch.zeros(2, 3), torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match="blur, pixelate, inpaint, fade"):
        degradation("melt")
    with pytest.raises(ValueError, match="centre, scan, scattered"):
        Inpaint("spiral")
    with pytest.raises(ValueError, match="width"):
        Blur(width=0.0)
    with pytest.raises(ValueError, match="axes"):
        Pixelate(axes=0)
    with pytest.raises(TypeError, match="fill"):
        Fade(fill="white")
