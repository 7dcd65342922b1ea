"""Draws a result: `python -m benchmarks.plot FILE.json --out FOLDER`.

One picture for each figure that the suite names: times over the size with the least and the
greatest run shaded and the roofline's floor below, and beside it the rate that was reached under
the ceiling that was measured. `memory.png` shows each peer's peak where memory was measured, on a
GPU at the largest size of each figure; `goals.png` how far each goal is from its target.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result_file import ResultError, read

COLORS = ("#e0532f", "#3b82d0", "#17a2a2", "#e39a1f", "#9b4dca", "#57a64a", "#c2397a", "#6b6fd4",
          "#9c5b2e", "#8a919c")  # fmt: skip
STATUS = {"pass": "#57a64a", "miss": "#e0532f"}
QUIET = "#8a919c"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args(arguments)
    try:
        content = read(options.file)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in draw(content, options.out):
        print(path)
    return 0


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draws all pictures of a result and returns their files."""
    drawn = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in content["results"]:
        if result.get("figure") and result["kind"] == "time":
            groups.setdefault(result["figure"], []).append(result)
    colors = _colors(content["results"])
    for title, results in groups.items():
        figure = _picture(title, results, content, colors)
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        drawn.append(_save(figure, folder / f"{name}.png"))
    if peaks := _peaks(groups, content["results"]):
        drawn.append(_save(_memory(peaks, content, colors), folder / "memory.png"))
    if any(goal["value"] is not None for goal in content["goals"]):
        drawn.append(_save(_goals(content), folder / "goals.png"))
    return drawn


def _colors(results: list[dict[str, Any]]) -> dict[str, str]:
    """A peer has one colour in all pictures."""
    names: dict[str, None] = {}
    for result in results:
        names |= dict.fromkeys(result["peers"])
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}


def _picture(
    title: str, results: list[dict[str, Any]], content: dict[str, Any], colors: dict[str, str]
) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    times, rates = figure.subplots(1, 2)
    axis_name = results[0]["x"]
    results = sorted(results, key=lambda result: result["parameters"][axis_name])
    sizes = [result["parameters"][axis_name] for result in results]
    ceilings = content["sessions"][results[-1]["session"]]["ceilings"]
    last = results[-1]["work"]
    compute = (
        last["flop"] / ceilings["matmul_tflop_s"] > 1e3 * last["bytes"] / ceilings["copy_gb_s"]
    )
    rate, ceiling = ("tflop_s", "matmul_tflop_s") if compute else ("gb_s", "copy_gb_s")
    peers = dict.fromkeys(name for result in results for name in result["peers"])
    for name in peers:
        _lines(name, results, axis_name, rate, (times, rates), colors[name])
    floors = [result["floor_ms"] for result in results]
    times.plot(sizes, floors, color=QUIET, linestyle="--", label="floor (roofline)")
    rates.axhline(ceilings[ceiling], color=QUIET, linestyle="--")
    rates.text(sizes[0], ceilings[ceiling], " measured ceiling", va="bottom", color=QUIET)
    for axes, label in ((times, "milliseconds"), (rates, "TFLOP/s" if compute else "GB/s")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set(xlabel=axis_name, ylabel=label)
        axes.grid(color=QUIET, alpha=0.25)
    times.set_yscale("log")
    rates.set_ylim(0, 1.12 * ceilings[ceiling])
    times.legend(fontsize="small")
    figure.suptitle(f"{title} · {content['device_name']}")
    return figure


def _lines(
    name: str,
    results: list[dict[str, Any]],
    axis_name: str,
    rate: str,
    axes: tuple[Axes, Axes],
    color: str,
) -> None:
    """A peer's times and rates, where it was timed."""
    timed = [result for result in results if "median_ms" in result["peers"].get(name, {})]
    if not timed:
        return
    sizes = [result["parameters"][axis_name] for result in timed]
    found = [result["peers"][name] for result in timed]
    style = {"color": color, "marker": "o", "markersize": 3.5}
    if name.endswith(":plain"):
        style |= {"linestyle": ":"}
    times, rates = axes
    times.plot(sizes, [peer["median_ms"] for peer in found], label=name, **style)
    least, most = ([peer[key] for peer in found] for key in ("min_ms", "max_ms"))
    times.fill_between(sizes, least, most, color=color, alpha=0.15, linewidth=0)
    rates.plot(sizes, [peer[rate] for peer in found], **style)


def _peaks(
    groups: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """MiB of each peer, by case: of those that measure nothing else, and the largest timed ones."""
    largest = [max(group, key=lambda r: r["parameters"][r["x"]]) for group in groups.values()]
    found = {}
    for result in [*largest, *(result for result in results if result["kind"] == "memory")]:
        figure = "additional_mib" if result["kind"] == "memory" else "peak_mib"
        peers = {name: p[figure] for name, p in result["peers"].items() if figure in p}
        if peers:
            found[result["name"]] = peers
    return found


def _memory(
    peaks: dict[str, dict[str, float]], content: dict[str, Any], colors: dict[str, str]
) -> Figure:
    """A bar for each peer, a panel for each case."""
    rows = [len(peers) for peers in peaks.values()]
    figure = Figure(figsize=(10, 0.9 * len(rows) + 0.26 * sum(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (name, peers) in zip(panels, peaks.items(), strict=True):
        places = range(len(peers))
        axes.barh(places, peers.values(), color=[colors[peer] for peer in peers], height=0.6)
        for place, mib in zip(places, peers.values(), strict=True):
            axes.text(mib, place, f" {mib:,.0f} MiB", va="center", fontsize="small")
        axes.set_yticks(places, peers, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(name, fontsize="medium", loc="left")
    panels[-1].set_xlabel("MiB at the peak of one call, above what was held")
    figure.suptitle(f"memory of {content['suite']} · {content['device_name']}")
    return figure


def _goals(content: dict[str, Any]) -> Figure:
    """Each goal's value over its target."""
    goals = [goal for goal in content["goals"] if goal["value"] is not None]
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(goals)), layout="constrained")
    axes = figure.subplots()
    for row, goal in enumerate(reversed(goals)):
        # Above 1 is better, whichever way the goal is written; nothing is better than 100.
        share = goal["value"] / goal["target"]
        share = share if goal["comparison"] == "at least" else 1 / max(share, 0.01)
        axes.barh(row, share, color=STATUS[goal["status"]], height=0.6)
        axes.text(share, row, f" {goal['value']:g}{goal['unit']}", va="center", fontsize="small")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(goals)), [goal["name"] for goal in reversed(goals)], fontsize="small")
    axes.set_xlabel("how far beyond the target (the line): right of it is reached")
    axes.margins(x=0.12)
    figure.suptitle(f"goals of {content['suite']} · {content['device_name']}")
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    sys.exit(main())
