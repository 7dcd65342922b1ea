"""Figures of samples: closed forms, real pictures as their own samples, and noise."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.metrics import (
    GATE,
    features,
    frechet_distance,
    measure,
    nearest,
    passes_gate,
)


def rows(count: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, width)) @ generator.standard_normal((width, width))


def test_the_frechet_distance_is_that_of_scipys_matrix_root():
    first, second = rows(50, 7, 0), rows(31, 7, 1) + 0.5
    covariances = np.cov(first.T), np.cov(second.T)
    root = sqrtm(covariances[0] @ covariances[1])
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_a_shift_and_a_scale_has_a_closed_form():
    first = rows(40, 5, 2)
    shift = np.arange(5.0)
    assert frechet_distance(first, first + shift) == pytest.approx(30.0)
    about_mean = 3 * (first - first.mean(0)) + first.mean(0)
    assert frechet_distance(first, about_mean) == pytest.approx(4 * np.trace(np.cov(first.T)))
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_fewer_pictures_than_features_still_have_a_distance():
    assert frechet_distance(rows(4, 20, 0), rows(4, 20, 0)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="2 pictures a side, got 1"):
        frechet_distance(rows(1, 3, 0), rows(4, 3, 0))


def test_the_nearest_is_found_among_all():
    some, others = rows(700, 6, 3), rows(33, 6, 4)
    distances, indices = nearest(some, others)
    all_of_them = np.sqrt(((some[:, None] - others[None]) ** 2).sum(-1))
    np.testing.assert_allclose(distances, all_of_them.min(1), rtol=1e-6)
    np.testing.assert_array_equal(indices, all_of_them.argmin(1))


def test_features_are_pixels_or_their_means():
    small = torch.rand(3, 1, 8, 8)
    np.testing.assert_array_equal(features(small), small.flatten(1).double().numpy())
    large = torch.rand(2, 3, 16, 24)
    blocks = large.double().unflatten(3, (8, 3)).unflatten(2, (8, 2)).mean((3, 5))
    np.testing.assert_allclose(features(large), blocks.flatten(1).numpy())


@pytest.fixture(scope="module")
def data():
    return digits()


def test_trained_pictures_as_samples_are_copies_and_otherwise_real(data):
    train = data.split[0]
    measured = measure(data.continuous(train), data.labels[train], data)
    real = measured["real"]
    assert measured["frechet"] == pytest.approx(real["frechet"]) == pytest.approx(0.2932, abs=1e-3)
    assert measured["train_on_synthetic"] == real["train_on_synthetic"]
    assert measured["accuracy"] > real["accuracy"] > 0.97
    assert measured["nearest"] == 0.0
    assert measured["near_copies"] == 1.0
    assert real["near_copies"] == pytest.approx(0.01, abs=0.002)
    assert passes_gate(measured)


def test_other_peoples_classes_and_noise_fail(data):
    train = data.split[0]
    images, labels = data.continuous(train), data.labels[train]
    wrong = measure(images, labels.roll(1), data)
    assert wrong["accuracy"] < 0.3
    assert wrong["train_on_synthetic"] < 0.3
    noise = measure(torch.rand_like(images) * 2 - 1, labels, data)
    assert noise["frechet"] > 20 * noise["real"]["frechet"]
    assert noise["nearest"] > 2 * noise["real"]["nearest"]
    assert not passes_gate(wrong)
    assert not passes_gate(noise)


def test_samples_without_classes_have_no_accuracy(data):
    measured = measure(data.continuous(data.split[0][:50]), None, data)
    assert measured["samples"] == 50
    assert "accuracy" not in measured
    assert "train_on_synthetic" not in measured["real"]


@pytest.mark.parametrize("figure", GATE)
def test_every_part_of_the_gate_counts(figure):
    best = {"accuracy": 1.0, "frechet": 0.0, "train_on_synthetic": 1.0}
    assert passes_gate(best)
    assert not passes_gate({**best, figure: 2.0 if figure == "frechet" else 0.5})
