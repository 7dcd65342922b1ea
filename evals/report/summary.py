"""From per-sample results to the figures that are shown: one estimate per cell."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, log, nan
from typing import Any

from ropewalk.evals.report.many_contexts import ContextShares, context_shares
from ropewalk.evals.report.statistics import Estimate, mean, ratio, wilson


@dataclass(frozen=True)
class Loss:
    """Perplexity's figures of one variant at one length.

    Attributes:
        nats: loss in nats per token.
        bits_per_byte: loss in bits per byte of text.
        change: bits per byte gained or lost against the shortest length, paired by document.
        by_sample: sample → its bits per byte, for comparisons of variants on the same documents.
    """

    nats: Estimate
    bits_per_byte: Estimate
    change: Estimate
    by_sample: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """All that a report shows of a run.

    Attributes:
        variants: labels in the order of the run.
        lengths: of the prompts of perplexity and passkey, ascending; empty without them.
        trained_length: of the run's main model.
        losses: (variant, length) → loss; empty without the task.
        retrieval: (variant, length, depth) → share of pass keys found.
        retrieval_by_length: (variant, length) → the same over all depths.
        depths: ascending.
        contexts: pass keys found in one of many contexts; None without the task.
        configuration: of the run.
        sessions: when, for how long and on what it ran.
        complete: whether all results are there.
        planned: task → samples in each of its cells, of the tasks that are shown.
        planned_samples: how many samples the whole run has.
        measured: how many samples of those tasks there are.
    """

    variants: Sequence[str]
    lengths: Sequence[int]
    trained_length: int
    losses: dict[tuple[str, int], Loss]
    retrieval: dict[tuple[str, int, float], Estimate]
    retrieval_by_length: dict[tuple[str, int], Estimate]
    depths: Sequence[float]
    contexts: ContextShares | None
    configuration: dict[str, Any]
    sessions: Sequence[dict[str, Any]]
    complete: bool
    planned: dict[str, int]
    planned_samples: int
    measured: int

    def is_whole(self, task: str, count: int) -> bool:
        """Whether `count` samples are all that a cell of `task` is to have."""
        return count >= self.planned[task]

    @property
    def model(self) -> str:
        """The run's main model."""
        return self.configuration["model"]

    @property
    def seconds(self) -> float:
        """How long the run took, over all sessions."""
        return sum(session["seconds"] for session in self.sessions)

    def settings_of(self, variant: str) -> str:
        """A variant's rules with all their parameters, in words."""
        parts = self.configuration["variants"][variant].values()
        return " + ".join(map(_part_in_words, parts)) or "the model as it is"


def summarise(content: dict[str, Any]) -> Summary:
    """Aggregates the content of a run's file."""
    configuration = content["configuration"]
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in content["results"]:
        by_task[result["task"]].append(result)
    keys = by_task["passkey"]
    planned = _planned(configuration["tasks"])
    prompts = {"perplexity", "passkey"} & planned.keys()
    if not configuration["variants"] or (prompts and not configuration["lengths"]):
        raise ValueError("the configuration has no lengths or no variants")
    return Summary(
        variants=list(configuration["variants"]),
        lengths=configuration["lengths"],
        trained_length=configuration["models"][configuration["model"]]["trained_length"],
        losses=_losses(by_task["perplexity"]),
        retrieval=_shares((r["variant"], r["length"], r["depth"], r["correct"]) for r in keys),
        retrieval_by_length=_shares((r["variant"], r["length"], r["correct"]) for r in keys),
        depths=sorted({result["depth"] for result in keys}),
        contexts=context_shares(configuration, by_task["nbce"]),
        configuration=configuration,
        sessions=content["sessions"],
        complete=content["complete"],
        planned=planned,
        planned_samples=_planned_samples(configuration, planned),
        measured=sum(len(by_task[task]) for task in planned),
    )


def _planned(tasks: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Samples in each cell of the tasks that reports know."""
    planned = {}
    if "perplexity" in tasks:
        planned["perplexity"] = len(tasks["perplexity"]["documents"])
    if "passkey" in tasks:
        planned["passkey"] = len(tasks["passkey"]["depths"]) * tasks["passkey"]["trials"]
    if "nbce" in tasks:
        planned["nbce"] = len(tasks["nbce"]["depths"]) * tasks["nbce"]["trials"]
    return planned


def _planned_samples(configuration: dict[str, Any], planned: dict[str, int]) -> int:
    """Samples of all cells; parallel windows are of some variants only."""
    variants = len(configuration["variants"])
    total = sum(
        planned.get(task, 0) * variants * len(configuration["lengths"])
        for task in ("perplexity", "passkey")
    )
    if "nbce" in planned:
        readings = 2 * variants + len(configuration["parallel_windows"])
        total += planned["nbce"] * len(configuration["tasks"]["nbce"]["contexts"]) * readings
    return total


def _losses(results: Iterable[dict[str, Any]]) -> dict[tuple[str, int], Loss]:
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        cells[result["variant"], result["length"]][result["sample"]] = result
    losses = {}
    for (variant, length), samples in cells.items():
        shortest = min(other for name, other in cells if name == variant)
        start = cells[variant, shortest]
        changes = [
            _bits(sample) / sample["bytes"] - _bits(start[key]) / start[key]["bytes"]
            for key, sample in samples.items()
            if key in start
        ]
        losses[variant, length] = Loss(
            nats=mean([_finite(sample["nats"]) for sample in samples.values()]),
            bits_per_byte=ratio(
                [_bits(sample) for sample in samples.values()],
                [sample["bytes"] for sample in samples.values()],
            ),
            change=mean(changes) if changes else Estimate(nan, nan, nan, 0),
            by_sample={key: _bits(sample) / sample["bytes"] for key, sample in samples.items()},
        )
    return losses


def _shares(results: Iterable[tuple[Any, ...]]) -> dict[Any, Estimate]:
    """Groups (key…, found) and gives the share found of each key."""
    cells: dict[Any, list[bool]] = defaultdict(list)
    for *key, found in results:
        cells[tuple(key)].append(found)
    return {key: wilson(sum(found), len(found)) for key, found in cells.items()}


def _bits(sample: dict[str, Any]) -> float:
    return _finite(sample["nats"]) * sample["tokens"] / log(2)


def _finite(value: float | None) -> float:
    """A loss that was not finite is stored as None; it counts as NaN, which shows."""
    return nan if value is None else value


def _part_in_words(part: dict[str, Any]) -> str:
    values = ", ".join(
        f"{key}={_value_in_words(value)}"
        for key, value in part.items()
        if key != "name" and value is not None
    )
    return f"{part['name']}({values})" if values else part["name"]


def _value_in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "/".join(map(_value_in_words, value))
    return f"{value:g}" if isinstance(value, float) and value != inf else str(value)
