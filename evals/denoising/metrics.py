"""How good samples are, measured against real pictures and never by the denoiser itself.

accuracy              a support-vector classifier (SVC) trained on real pictures finds the class
                      that a sample was asked for
Fréchet distance      between Gaussians fitted to samples and to unseen pictures,
                      |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½)
train on synthetic    accuracy, on unseen pictures, of an SVC that was trained on samples alone
nearest neighbour     how far samples are from the nearest picture that was trained on; much less
                      than unseen pictures are would mean copies

Each stands beside the same figure for real pictures: trained ones in the place of samples (or
unseen ones, for the nearest neighbour). All of them look at the pixels in [−1, 1], averaged over
squares until a picture has at most 8 × 8 of them: for the digits those are the pixels themselves.
Guidance drives the accuracy up and spreads the distance, so one without the other says little.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ropewalk.evals.denoising.data import MISSING, ImageData

SIDE = 8
# Beyond this many pictures of a kind an SVC takes minutes; the first ones are taken then.
MOST = 5000
# A sample nearer to a trained picture than this share of unseen ones counts as a near copy.
NEAR = 0.01
# Fewer unseen pictures than these say little.
FEW = 30
# What `ropewalk denoise --data digits` must reach with its default samples: at guidance 1, and as
# many as there are trained pictures.
GATE = {"accuracy": 0.95, "frechet": 0.75, "train_on_synthetic": 0.94}


def features(
    images: Float[Tensor, "pictures channels height width"],
) -> Float[np.ndarray, "pictures features"]:
    """Pictures in [−1, 1] as rows of float64: averaged down to 8 × 8, if they are larger."""
    images = images.double()
    height, width = images.shape[-2:]
    if height > SIDE or width > SIDE:
        images = functional.adaptive_avg_pool2d(images, (min(SIDE, height), min(SIDE, width)))
    return images.flatten(1).numpy()


def frechet_distance(
    first: Float[np.ndarray, "some features"], second: Float[np.ndarray, "others features"]
) -> float:
    """Fréchet (2-Wasserstein) distance, squared, of the Gaussians with the samples' moments.

    Raises:
        ValueError: fewer than two rows on a side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a Fréchet distance needs 2 pictures a side, got {len(first)} and {len(second)}"
        )
    moved = first.mean(0) - second.mean(0)
    covariances = [np.atleast_2d(np.cov(side, rowvar=False)) for side in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    # A distance of a set to itself may come out a rounding below zero.
    squared = moved @ moved + sum(map(np.trace, covariances))
    return max(0.0, float(squared - 2.0 * np.sqrt(product.clip(min=0.0)).sum()))


def nearest(
    some: Float[np.ndarray, "some features"], others: Float[np.ndarray, "others features"]
) -> tuple[Float[np.ndarray, " some"], Int[np.ndarray, " some"]]:
    """Euclidean distance of each row to the nearest of the others, and which one that is."""
    rows = torch.from_numpy(others)
    found = [torch.cdist(part, rows).min(1) for part in torch.from_numpy(some).split(512)]
    distances = torch.cat([part.values for part in found]).numpy()
    return distances, torch.cat([part.indices for part in found]).numpy()


def measure(samples: Tensor, labels: Tensor | None, data: ImageData) -> dict[str, Any]:
    """All figures of samples.

    Args:
        samples: (samples, channels, height, width) in [−1, 1].
        labels: the classes asked for, (samples,); None where the data has none.
        data: real pictures.

    Returns:
        `samples`, `trained`, `unseen` (how many were compared), then for every figure its value
        and under `real` what real pictures get in place of samples. Accuracies only with classes;
        those of `real` are one number under two names, by definition: a classifier of trained
        pictures judges unseen ones.
    """
    chosen = [part[:MOST] for part in data.split]
    train, unseen = (features(data.continuous(part)) for part in chosen)
    drawn = features(samples[:MOST])
    distances, _ = nearest(drawn, train)
    real_distances, _ = nearest(unseen, train)
    near = float(np.quantile(real_distances, NEAR))
    measured: dict[str, Any] = {
        "samples": len(drawn),
        "trained": len(train),
        "unseen": len(unseen),
        "frechet": frechet_distance(drawn, unseen),
        "nearest": float(np.median(distances)),
        "near_copies": float((distances < near).mean()),
    }
    real: dict[str, float] = {
        "frechet": frechet_distance(train, unseen),
        "nearest": float(np.median(real_distances)),
        "near_copies": float((real_distances < near).mean()),
    }
    if labels is not None and data.labels is not None:
        drawn_labels = labels[:MOST].numpy()
        train_labels, unseen_labels = (data.labels[part].numpy() for part in chosen)
        judge = _classifier(train, train_labels)
        measured["accuracy"] = float(judge.score(drawn, drawn_labels))
        real["accuracy"] = real["train_on_synthetic"] = float(judge.score(unseen, unseen_labels))
        measured["train_on_synthetic"] = float(
            _classifier(drawn, drawn_labels).score(unseen, unseen_labels)
        )
    return {**measured, "real": real}


def passes_gate(measured: dict[str, Any]) -> bool:
    """Whether figures on the digits are at least as good as they must be."""
    return (
        measured["accuracy"] >= GATE["accuracy"]
        and measured["frechet"] <= GATE["frechet"]
        and measured["train_on_synthetic"] >= GATE["train_on_synthetic"]
    )


def _classifier(rows: np.ndarray, labels: np.ndarray):
    """A support-vector classifier with a radial kernel, scikit-learn's defaults."""
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(MISSING) from error
    return SVC().fit(rows, labels)
