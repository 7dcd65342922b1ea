"""The page: one HTML file that holds everything, pictures included, and needs no network."""

from collections.abc import Callable, Mapping
from html import escape
from math import isfinite
from typing import Any

from ropewalk.evals.report.conclusion import conclusion
from ropewalk.evals.report.html import details, document, picture, section, table
from ropewalk.evals.report.many_contexts import READERS, ContextShares
from ropewalk.evals.report.statistics import Estimate
from ropewalk.evals.report.summary import Summary
from ropewalk.evals.run_folder import NAME

CAPTIONS = {
    "perplexity": "Loss in bits per byte. The scored text is the same at every length, so a "
    "falling curve means that the longer context helps. Curves that leave the frame are marked ↑.",
    "passkey": "Share of five-digit pass keys that greedy decoding repeats exactly, by context "
    "length and by the depth at which the key was hidden.",
    "nbce": "Share of five-digit pass keys that greedy decoding repeats exactly when one of many "
    "contexts states the key, by the number of contexts and by how they are read.",
}


def page(summary: Summary, pictures: Mapping[str, tuple[bytes, bytes]]) -> str:
    """The report as HTML.

    Args:
        summary: of the run.
        pictures: task → the picture as PNG, in its light and its dark form.
    """
    sections = []
    if summary.losses:
        sections.append(section("Loss", _picture("perplexity", pictures) + _loss_tables(summary)))
    if summary.retrieval:
        sections.append(
            section("Pass keys", _picture("passkey", pictures) + _retrieval_table(summary))
        )
    if "nbce" in pictures and summary.contexts is not None:
        body = _picture("nbce", pictures) + _contexts_table(summary, summary.contexts)
        sections.append(section("Many contexts", body))
    sections += [
        section("Variants", _variants_table(summary)),
        section("Run", _run_details(summary)),
    ]
    return document(
        title=_title(summary),
        subtitle=_subtitle(summary),
        conclusion=conclusion(summary),
        sections=sections,
        source=NAME,
    )


def _title(summary: Summary) -> str:
    """The model and the most that it was asked to read."""
    parts = []
    if {"perplexity", "passkey"} & summary.planned.keys():
        parts.append(f"at {summary.lengths[-1]} tokens")
    if summary.contexts is not None:
        most = _counted(summary.contexts.counts[-1], "context")
        parts.append(f"in {most} of {summary.contexts.context_length} tokens")
    return " ".join([summary.model, " and ".join(parts)]).strip()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _subtitle(summary: Summary) -> str:
    state = "" if summary.complete else " · not complete yet"
    started = summary.sessions[0]["started"][:10] if summary.sessions else "not started"
    variants = _counted(len(summary.variants), "variant")
    return (
        f"Trained at {summary.trained_length} tokens · {variants} · "
        f"{started} · {summary.seconds / 60:.1f} minutes{state}"
    )


def _picture(task: str, pictures: Mapping[str, tuple[bytes, bytes]]) -> str:
    return picture(*pictures[task], CAPTIONS[task])


def _by_length(
    summary: Summary,
    caption: str,
    estimates: Mapping[tuple[str, int], Estimate],
    show: Callable[[Estimate, bool], str],
    best: Callable[..., float],
) -> str:
    """A row per variant and a column per length; `show` makes a cell from (estimate, is best)."""
    tops = {}
    for length in summary.lengths:
        values = [e.value for (_, n), e in estimates.items() if n == length and isfinite(e.value)]
        tops[length] = best(values) if values else None
    rows = []
    for variant in summary.variants:
        cells = [f"<td><code>{escape(variant)}</code></td>"]
        for length in summary.lengths:
            cell = estimates.get((variant, length))
            cells.append("<td>–</td>" if cell is None else show(cell, cell.value == tops[length]))
        rows.append(cells)
    return table(caption, ["variant", *map(str, summary.lengths)], rows)


def _loss_tables(summary: Summary) -> str:
    task = summary.configuration["tasks"]["perplexity"]
    documents = len(task["documents"])

    def absolute(cell: Estimate, is_best: bool) -> str:
        mark = ' class="best"' if is_best else ""
        return f"<td{mark}>{cell.value:.3f}{_plus_minus(cell)}</td>"

    def change(cell: Estimate, is_best: bool) -> str:
        return f"<td>{cell.value:+.3f}{_plus_minus(cell)}</td>"

    losses = summary.losses
    absolute_table = _by_length(
        summary,
        f"Bits per byte on the last {task['score_tokens']} tokens of {documents} documents, "
        "with 95 % confidence intervals over documents. The lowest of each length is marked.",
        {key: loss.bits_per_byte for key, loss in losses.items()},
        absolute,
        min,
    )
    change_table = _by_length(
        summary,
        f"Change in bits per byte against {summary.lengths[0]} tokens, paired by document, which "
        "takes out how hard each one is. Negative: the longer context helps.",
        {key: loss.change for key, loss in losses.items()},
        change,
        min,
    )
    nats_table = _by_length(
        summary,
        "Nats per token.",
        {key: loss.nats for key, loss in losses.items()},
        absolute,
        min,
    )
    return (
        f"{absolute_table}\n<h2>Does the longer context help?</h2>\n{change_table}\n"
        f"<details><summary>Nats per token</summary>\n{nats_table}\n</details>"
    )


def _retrieval_table(summary: Summary) -> str:
    task = summary.configuration["tasks"]["passkey"]

    return _by_length(
        summary,
        f"Share of pass keys found over {_samples(task)}, with Wilson's 95 % interval.",
        summary.retrieval_by_length,
        _share,
        max,
    )


def _samples(task: dict[str, Any]) -> str:
    return f"{_counted(len(task['depths']), 'depth')} × {_counted(task['trials'], 'trial')}"


def _share(cell: Estimate, is_best: bool) -> str:
    mark = " best" if is_best and cell.value > 0 else ""
    return (
        f'<td class="share{mark}" style="--share:{0.42 * cell.value:.3f}">{cell.value:.0%}'
        f"<small>{cell.low:.0%} to {cell.high:.0%}</small></td>"
    )


def _contexts_table(summary: Summary, contexts: ContextShares) -> str:
    task = summary.configuration["tasks"]["nbce"]
    rows = []
    for variant, reader in contexts.rows:
        cells = [f"<td><code>{escape(variant)}</code></td>", f"<td>{escape(READERS[reader])}</td>"]
        for count in contexts.counts:
            cell = contexts.shares.get((variant, reader, count))
            shown = (
                "<td>–</td>" if cell is None else _share(cell, cell.value == contexts.best(count))
            )
            cells.append(shown)
        rows.append(cells)
    return table(
        f"Share of pass keys found among so many contexts of {contexts.context_length} tokens, "
        f"over {_samples(task)}, with Wilson's 95 % "
        "interval. NBCE merges what the model says after each context alone; naive Bayes is its "
        "mean with β = contexts − 1 and nothing cut off; the concatenation is one prompt with all "
        "of them.",
        ["variant", "read by", *map(str, contexts.counts)],
        rows,
    )


def _variants_table(summary: Summary) -> str:
    rows = [
        [
            f"<td><code>{escape(variant)}</code></td>",
            f'<td class="wide">{escape(summary.settings_of(variant))}</td>',
        ]
        for variant in summary.variants
    ]
    return table("Every variant with all its parameters.", ["variant", "rules"], rows)


def _run_details(summary: Summary) -> str:
    return details("Configuration", summary.configuration) + details(
        "Sessions, software and hardware", list(summary.sessions)
    )


def _plus_minus(cell: Estimate) -> str:
    return f"<small>± {cell.half_width:.3f}</small>" if isfinite(cell.half_width) else ""
