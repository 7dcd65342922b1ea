"""The tables in the terminal: one per task, a row per variant and a column per length."""

from math import isfinite

from rich import box
from rich.table import Table
from rich.text import Text

from ropewalk.evals.report.many_contexts import READERS, ContextShares
from ropewalk.evals.report.summary import Summary


def terminal_tables(summary: Summary) -> list[Table]:
    """Bits per byte and pass keys found over lengths or contexts; a column's best is bold."""
    tables = [
        _table(summary, task, title)
        for task, title, there in (
            ("loss", "Loss in bits per byte", bool(summary.losses)),
            ("passkey", "Pass keys found", bool(summary.retrieval_by_length)),
        )
        if there
    ]
    if summary.contexts is not None and summary.contexts.rows:
        tables.append(_contexts_table(summary.contexts))
    return tables


def terminal_settings(summary: Summary) -> Table:
    """What each variant was resolved to; those that leave the model as it is are left out."""
    table = Table.grid(padding=(0, 2))
    for variant in summary.variants:
        if summary.configuration["variants"][variant]:
            table.add_row(Text(variant), Text(summary.settings_of(variant)), style="dim")
    return table


def _table(summary: Summary, task: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for length in summary.lengths:
        table.add_column(str(length), justify="right", no_wrap=True)
    best = {length: _best(summary, task, length) for length in summary.lengths}
    for variant in summary.variants:
        cells = [Text(variant)]
        for length in summary.lengths:
            value = _value(summary, task, variant, length)
            if value is None:
                cells.append(Text("–", style="dim"))
                continue
            shown = f"{value:.3f}" if task == "loss" else f"{value:.0%}"
            cells.append(Text(shown, style="bold green" if value == best[length] else ""))
        table.add_row(*cells)
    return table


def _contexts_table(contexts: ContextShares) -> Table:
    table = Table(
        title=f"Pass keys found in n contexts of {contexts.context_length} tokens",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("variant", no_wrap=True)
    table.add_column("read by", no_wrap=True)
    for count in contexts.counts:
        table.add_column(str(count), justify="right", no_wrap=True)
    shown = ""
    for variant, reader in contexts.rows:
        if shown and variant != shown:
            table.add_section()
        cells = [Text(variant if variant != shown else ""), Text(READERS[reader])]
        for count in contexts.counts:
            share = contexts.shares.get((variant, reader, count))
            if share is None:
                cells.append(Text("–", style="dim"))
                continue
            best = share.value == contexts.best(count)
            cells.append(Text(f"{share.value:.0%}", style="bold green" if best else ""))
        table.add_row(*cells)
        shown = variant
    return table


def _value(summary: Summary, task: str, variant: str, length: int) -> float | None:
    if task == "loss":
        loss = summary.losses.get((variant, length))
        return None if loss is None else loss.bits_per_byte.value
    share = summary.retrieval_by_length.get((variant, length))
    return None if share is None else share.value


def _best(summary: Summary, task: str, length: int) -> float | None:
    """The lowest loss or the highest share of a column."""
    values = [
        value
        for variant in summary.variants
        if (value := _value(summary, task, variant, length)) is not None and isfinite(value)
    ]
    if not values:
        return None
    return min(values) if task == "loss" else max(values)
