"""Pass keys found in one of many contexts, by variant, reader and number of contexts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.evals.report.statistics import Estimate, wilson

# Readers in the order in which they are shown, as they are called there.
READERS = {
    "min_entropy": "NBCE, least entropy",
    "entropy_weighted": "NBCE, entropy-weighted",
    "max": "NBCE, maximum",
    "max_beta_0": "NBCE, maximum, β = 0",
    "mean": "NBCE, mean",
    "naive_bayes": "naive Bayes",
    "concatenation": "concatenation",
    "parallel_windows": "parallel windows",
}


@dataclass(frozen=True)
class ContextShares:
    """What the task nbce found.

    Attributes:
        counts: numbers of contexts, ascending.
        context_length: tokens of each.
        rows: (variant, reader) in the order in which they are shown.
        shares: (variant, reader, number of contexts) → share of pass keys found.
    """

    counts: Sequence[int]
    context_length: int
    rows: Sequence[tuple[str, str]]
    shares: dict[tuple[str, str, int], Estimate]

    def best(self, count: int) -> float | None:
        """The highest share among `count` contexts."""
        found = [cell.value for (*_, number), cell in self.shares.items() if number == count]
        return max(found, default=None)


def context_shares(
    configuration: dict[str, Any], results: Iterable[dict[str, Any]]
) -> ContextShares | None:
    """Aggregates the results of the task nbce; None for a run without it."""
    task = configuration["tasks"].get("nbce")
    if task is None:
        return None
    cells: dict[tuple[str, str, int], list[bool]] = defaultdict(list)
    for result in results:
        for reader, found in result["correct"].items():
            cells[result["variant"], reader, result["contexts"]].append(found)
    return ContextShares(
        counts=task["contexts"],
        context_length=task["context_length"],
        rows=[
            (variant, reader)
            for variant in configuration["variants"]
            for reader in READERS
            if any((variant, reader, count) in cells for count in task["contexts"])
        ],
        shares={key: wilson(sum(found), len(found)) for key, found in cells.items()},
    )
