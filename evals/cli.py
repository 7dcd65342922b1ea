"""The command `ropewalk`: one sub-command per job.

Bad input ends with one line on stderr and exit code 2, never with a traceback; a machine that
cannot finish ends with one line and exit code 1.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.evals.ask.command import ask
from ropewalk.evals.denoising.command import denoise
from ropewalk.evals.errors import EvaluationError, InputError
from ropewalk.evals.options import Threads, TrustRemoteCode, numbers, set_threads

INTERRUPTED = 130

app = typer.Typer(
    name="ropewalk",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ropewalk {version('ropewalk')}\n")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """RoPE variants for language models: plug them in, measure them at long context."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits.

    Args:
        arguments: the command line without the program's name; `sys.argv` by default.
    """
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="ropewalk", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except EvaluationError as error:
        return _fail(str(error), 1)
    except Exception as error:
        # Usage errors of the command line parser; its exception classes have moved between
        # releases, their interface has not.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # type: ignore[attr-defined]
        return _fail(message or "no command given; see ropewalk --help", 2)
    # The parser turns an interrupt into this exit code.
    if code == INTERRUPTED:
        return _fail("stopped; the same command continues a run where it was", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"ropewalk: error: {' '.join(message.split())}\n")
    return code


@app.command("eval")
def eval_command(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/MODEL by default.")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "default",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="See `ropewalk variants`; VARIANT@MODEL runs it on another model."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="perplexity, passkey or nbce; the first two by default."),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(help="Ascending lengths in tokens, such as 4096,8192; 1,2,4,8 × the trained."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text file or folder; bundled held-out text by default."),
    ] = None,
    documents: Annotated[int, typer.Option(help="Most documents of the longest length.")] = 8,
    score_tokens: Annotated[
        int | None,
        typer.Option(help="Last tokens scored in each document; half the shortest length."),
    ] = None,
    depth: Annotated[
        str, typer.Option(help="Where the pass key is hidden, 0 to 1.")
    ] = "0,0.25,0.5,0.75,1",
    trials: Annotated[
        int, typer.Option(help="Pass keys for each length (number of contexts) and depth.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Decides the pass keys.")] = 0,
    contexts: Annotated[
        str, typer.Option(help="Numbers of contexts, one of which holds the pass key.")
    ] = "1,2,4,8,16,32",
    context_length: Annotated[
        int | None, typer.Option(help="Tokens of each context; 3/4 of the trained length.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Most sequences at once; chosen to fit memory by default.")
    ] = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measures variants on a model over context lengths; continues a run that was stopped."""
    from ropewalk.evals.request import Request
    from ropewalk.evals.tasks.registry import DEFAULT_TASKS

    request = Request(
        out=out or Path("runs") / (Path(model).name or "model"),
        model=model,
        variants=tuple(variant or ("rope",)),
        tasks=tuple(task or DEFAULT_TASKS),
        lengths=numbers("length", length, int) if length is not None else (),
        text=tuple(text or ()),
        documents=documents,
        score_tokens=score_tokens,
        depths=numbers("depth", depth, float),
        trials=trials,
        seed=seed,
        contexts=numbers("contexts", contexts, int),
        context_length=context_length,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
    request.check()
    set_threads(threads)
    from ropewalk.evals.commands import evaluate_and_report

    evaluate_and_report(request)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
) -> None:
    """Draws a run again: its tables, a picture for each task, and report.html."""
    from ropewalk.evals.commands import report_run

    report_run(run)


@app.command()
def variants() -> None:
    """Lists the rules that a variant can be made of, with parameters and papers."""
    from ropewalk.evals.commands import list_variants

    list_variants()


app.command()(ask)
app.command()(denoise)


@app.command()
def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Also 8192 and 16384 tokens (a good hour).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/demo or runs/demo-full.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Every variant on the bundled model, at 1 to 8 times the length it was trained at."""
    from ropewalk.evals.demo import demo_request

    request = demo_request(full=full, out=out)
    request.check()
    set_threads(threads)
    from ropewalk.evals.commands import evaluate_and_report

    evaluate_and_report(request)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist yet.")],
    variant: Annotated[str, typer.Option(help="A frequency rule, see `ropewalk variants`.")],
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "default",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "bfloat16",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Writes a checkpoint whose config lets vLLM, SGLang and llama.cpp run a frequency rule."""
    from ropewalk.evals.commands import export_model

    export_model(model, variant, out, dtype=dtype, trust_remote_code=trust_remote_code)


@app.command("train-default")
def train_default(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint; a stopped run continues.")],
    recipe: Annotated[str, typer.Option(help="Which bundled model to train.")] = "plain",
    compiled: Annotated[
        bool, typer.Option("--compile", help="A third faster; needs a C++ compiler.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Trains a bundled model again, from Python's standard-library source."""
    from ropewalk.evals.commands import train_model

    set_threads(threads)
    train_model(recipe, out, compiled=compiled)


if __name__ == "__main__":
    main()
