"""The oracle: one question at a time, in float64, with sorting and plain loops."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

NOTHING = -math.inf


@dataclass
class Case:
    """A problem, and how the public function is called with it."""

    logits: Tensor
    unconditional: Tensor
    options: dict = field(default_factory=dict)


def cut(row: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """ln p, and the same with −inf where it is dropped."""
    log_probs = row - (row.max() + np.log(np.exp(row - row.max()).sum()))
    if top_p == 1.0:
        return log_probs, log_probs
    probs = np.exp(log_probs)
    kept, above, before = np.zeros(len(row), bool), 0.0, None
    for place in np.argsort(-probs, kind="stable"):
        if before is None or probs[place] < before:
            mass_above, before = above, float(probs[place])
        kept[place] = mass_above < top_p
        above += probs[place]
    return log_probs, np.where(kept, log_probs, NOTHING)


def entropy_of(row: np.ndarray, renormalise: bool) -> float:
    finite = row[np.isfinite(row)]
    if renormalise:
        finite = finite - np.log(np.exp(finite).sum())
    return float(-(np.exp(finite) * finite).sum())


def merge_one(
    logits: np.ndarray,
    unconditional: np.ndarray,
    *,
    beta: float = 0.25,
    eta: float = 0.1,
    top_p: float = 0.95,
    pooling: str = "min_entropy",
    renormalise_entropy: bool = False,
    previous: int = -1,
    prior: np.ndarray | None = None,
) -> tuple[np.ndarray, int, list[float]]:
    """Log-probabilities, the chosen context and all entropies of one question."""
    contexts, vocabulary = logits.shape
    rows = [cut(row, top_p) for row in logits]
    entropies = [entropy_of(kept, renormalise_entropy) for _, kept in rows]
    weights = np.ones(contexts) if prior is None else prior / prior.mean()
    scores = [
        entropies[k] - (eta if k == previous else 0.0) - math.log(weights[k])
        if weights[k] > 0
        else math.inf
        for k in range(contexts)
    ]
    chosen = int(np.argmin(scores))
    part = [k for k in range(contexts) if weights[k] > 0]
    if pooling == "min_entropy":
        pooled = rows[chosen][1]
    elif pooling == "mean":
        share = weights / weights.sum()
        pooled = np.sum([share[k] * rows[k][1] for k in part], axis=0)
        if not np.isfinite(pooled).any():
            union = np.any([np.isfinite(rows[k][1]) for k in part], axis=0)
            whole = np.sum([share[k] * rows[k][0] for k in part], axis=0)
            pooled = np.where(union, whole, NOTHING)
    elif pooling == "max":
        pooled = np.max([rows[k][1] + math.log(weights[k]) for k in part], axis=0)
    else:
        surer = np.exp([min(scores) - scores[k] for k in part])
        mixed = (surer / surer.sum()) @ np.exp([rows[k][1] for k in part])
        with np.errstate(divide="ignore"):
            pooled = np.log(mixed)
    without = cut(unconditional, top_p)[1]
    merged = np.full(vocabulary, NOTHING)
    for token in range(vocabulary):
        if np.isfinite(pooled[token]):
            merged[token] = pooled[token]
            if np.isfinite(without[token]):
                merged[token] = (1 + beta) * pooled[token] - beta * without[token]
    greatest = merged.max()
    return merged - greatest - np.log(np.exp(merged - greatest).sum()), chosen, entropies


def oracle(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """All questions of a case, with any leading dimensions."""
    *questions, contexts, vocabulary = case.logits.shape
    logits = case.logits.detach().double().cpu().reshape(-1, contexts, vocabulary).numpy()
    unconditional = case.unconditional.detach().double().cpu().reshape(-1, vocabulary).numpy()
    options = dict(case.options)
    options.pop("backend", None)
    previous, prior = options.pop("previous", None), options.pop("prior", None)
    if previous is not None:
        previous = previous.cpu().reshape(-1).tolist()
    if prior is not None:
        prior = prior.detach().double().cpu().expand(*questions, contexts)
        prior = prior.reshape(-1, contexts).numpy()
    found = [
        merge_one(
            logits[q],
            unconditional[q],
            previous=-1 if previous is None else previous[q],
            prior=None if prior is None else prior[q],
            **options,
        )
        for q in range(len(logits))
    ]
    return (
        torch.tensor(np.array([row for row, _, _ in found])).reshape(*questions, vocabulary),
        torch.tensor([chosen for _, chosen, _ in found]).reshape(questions),
        torch.tensor([e for _, _, e in found], dtype=torch.float64).reshape(*questions, contexts),
    )


@pytest.fixture(scope="session")
def merge_oracle():
    return oracle


@pytest.fixture(scope="session")
def make_case():
    """A case from a seed: rows of one model output, of a scale from flat to peaked."""

    def make(
        questions: tuple[int, ...] = (2,),
        contexts: int = 4,
        vocabulary: int = 23,
        *,
        scale: float = 2.0,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: str = "cpu",
        **options,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(*questions, 1 + contexts, vocabulary, generator=generator) * scale
        rows = rows.to(dtype).to(device)
        return Case(rows[..., 1:, :], rows[..., 0, :], options)

    return make
