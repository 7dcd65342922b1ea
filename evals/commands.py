"""What the sub-commands do, apart from reading the command line (see `cli`)."""

import warnings
from pathlib import Path

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.request import Request, split_variant
from ropewalk.evals.run_folder import check_out


def evaluate_and_report(request: Request) -> None:
    """Evaluates, then prints the table and the conclusion and draws the report."""
    from ropewalk.evals.runner import evaluate

    evaluate(request, Console(stderr=True))
    report_run(request.out)


def report_run(folder: Path) -> None:
    """Prints the table and the conclusion of a run and draws its report."""
    from ropewalk.evals.denoising.results import NAME

    if (folder / NAME).exists():
        report_denoiser(folder)
        return
    from ropewalk.evals.report import (
        conclusion,
        terminal_settings,
        terminal_tables,
        write_report,
    )

    summary, written = write_report(folder)
    console = _console()
    console.print(f"{summary.model}, trained at {summary.trained_length} tokens", style="bold")
    console.print(Columns(terminal_tables(summary), padding=(0, 4)))
    console.print(terminal_settings(summary))
    console.print(conclusion(summary), highlight=False, soft_wrap=True)
    console.print(
        "written: " + ", ".join(map(str, written)), style="dim", highlight=False, soft_wrap=True
    )


def report_denoiser(folder: Path) -> None:
    """Prints the figures of a denoiser and draws its report."""
    from ropewalk.evals.denoising.report import conclusion, terminal_table, title, write_report

    content, written = write_report(folder)
    console = _console()
    console.print(title(content), style="bold", highlight=False)
    console.print(terminal_table(content))
    console.print(conclusion(content), highlight=False, soft_wrap=True)
    console.print(
        "written: " + ", ".join(map(str, written)), style="dim", highlight=False, soft_wrap=True
    )


def list_variants() -> None:
    """Prints every rule with its parameters and papers."""
    from ropewalk.llm.variant_rules import (
        KINDS,
        describe_parameters,
        kind_of,
        paper_of,
        rule_classes,
    )

    titles = {
        "frequency": "Frequency rules: which rotary frequencies",
        "distance": "Distance rules: which relative position a score sees",
        "log-n": "Logit scale",
    }
    console = _console()
    console.print(
        "A variant is one rule, or several joined with +, each with its parameters:\n"
        "  rope | ntk-aware:factor=8 | rerope:window=1024+log-n | yarn:factor=4+rerope\n"
        "rope is the model as it is. Parameters that are left out take the value in brackets.",
        highlight=False,
    )
    for kind in KINDS:
        table = Table(title=titles[kind], title_justify="left", box=box.SIMPLE, pad_edge=False)
        table.add_column("name", style="bold", no_wrap=True)
        table.add_column("parameters")
        table.add_column("paper", style="dim")
        for name in rule_classes():
            if kind_of(name) == kind:
                parameters = "\n".join(
                    f"{parameter.name}: {parameter.type} [{parameter.default}]"
                    for parameter in describe_parameters(name)
                )
                table.add_row(name, parameters.replace("[", r"\["), paper_of(name))
        console.print(table)


def export_model(
    name: str, variant_text: str, out: Path, *, dtype: str, trust_remote_code: bool = False
) -> None:
    """Writes a checkpoint with a variant's frequencies in its config.

    Raises:
        InputError: the variant cannot be exported, or `out` exists already.
    """
    variant, other = split_variant(variant_text)
    if other is not None:
        raise InputError(f"export takes one model, --model; got {variant_text!r}")
    if out.exists():
        raise InputError(f"output {str(out)!r} exists already; choose another --out")
    check_out(out)
    from ropewalk.evals.models import choose_device, choose_dtype, open_model, quiet_transformers
    from ropewalk.llm import export

    device = choose_device("cpu")
    chosen = choose_dtype(dtype, device)
    source = open_model(name, trust_remote_code=trust_remote_code)
    try:
        resolved = variant.over(source.native).resolve(source.trained_length)
        model = source.load(dtype=chosen, device=device)
        with resolved.plug(model), quiet_transformers(), warnings.catch_warnings():
            # What the warnings say stands in the report's notes, which are printed below.
            warnings.simplefilter("ignore")
            report = export(model, out, tokenizer=source.tokenizer)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise InputError(one_line(error)) from error
    console = _console()
    console.print(f"written: {out}", highlight=False)
    for note in report.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def train_model(recipe_name: str, out: Path, *, compiled: bool = False) -> None:
    """Trains a bundled model, continuing from the checkpoint in `out` if there is one.

    Raises:
        InputError: there is no such recipe, or `out` cannot be written or holds another training.
    """
    from ropewalk.evals.default_model.recipe import RECIPES
    from ropewalk.llm.variants import nearest

    if recipe_name not in RECIPES:
        raise InputError(f"unknown recipe {recipe_name!r}{nearest(recipe_name, RECIPES)}")
    check_out(out)
    from ropewalk.evals.default_model.command import train_and_publish

    try:
        folder = train_and_publish(RECIPES[recipe_name], out, _console(), compiled=compiled)
    except (ValueError, OSError) as error:
        raise InputError(one_line(error)) from error
    _console().print(f"written: {folder}", highlight=False)


def _console() -> Console:
    """Standard output; wide enough for a table where it goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
