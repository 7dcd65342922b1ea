"""The options of `ropewalk ask`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ropewalk.evals.errors import InputError
from ropewalk.evals.options import Threads, TrustRemoteCode, numbers, set_threads


def ask(
    context: Annotated[
        list[Path] | None, typer.Option(help="Text file or folder of them; each is read apart.")
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help=r"Asked of all contexts at once; may be repeated; \n is a line break."),
    ] = None,
    split: Annotated[
        bool,
        typer.Option("--split", help="Split files longer than the model, or --max-length, allows."),
    ] = False,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "default",
    variant: Annotated[
        str, typer.Option(help="Reads longer contexts; see `ropewalk variants`.")
    ] = "rope",
    prefix: Annotated[
        str, typer.Option(help=r"Stands before every context; \n is a line break.")
    ] = "",
    separator: Annotated[
        str, typer.Option(help=r"Stands between context and question; \n is a line break.")
    ] = r"\n\n",
    chat: Annotated[
        bool, typer.Option("--chat", help="Put it all into the model's chat template.")
    ] = False,
    stop: Annotated[
        list[str] | None,
        typer.Option(help=r"Text before which an answer ends; \n is a line break."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Of the distribution with --sample; 1 by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides what --sample draws; 0 by default.")
    ] = None,
    beta: Annotated[
        float, typer.Option(help="How far what the model says without context is taken off.")
    ] = 0.25,
    eta: Annotated[
        float, typer.Option(help="Bonus in nats for the context of the token before.")
    ] = 0.1,
    top_p: Annotated[
        float, typer.Option(help="Share of each distribution that is kept, the likeliest tokens.")
    ] = 0.95,
    pooling: Annotated[
        str,
        typer.Option(
            help="min_entropy, for an answer that stands in one context; or max (needs --beta 0), "
            "mean or entropy_weighted, which mix contexts: named is the one that thinks the token "
            "most probable."
        ),
    ] = "min_entropy",
    prior: Annotated[
        str | None, typer.Option(help="Weights of the contexts in their order, such as 2,1,0.5.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens that the model reads; its trained length by default.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write answers and traces there; - is standard output.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answers questions from many files, each read apart (NBCE), and says which ones it used."""
    from rich.console import Console

    from ropewalk.evals.ask.request import STANDARD_OUTPUT, AskRequest, make_merge

    request = AskRequest(
        contexts=tuple(context or ()),
        questions=tuple(map(_line_breaks, question or ())),
        split=split,
        model=model,
        variant=variant,
        prefix=_line_breaks(prefix),
        separator=_line_breaks(separator),
        chat=chat,
        stop=tuple(map(_line_breaks, stop or ())),
        max_new_tokens=max_new_tokens,
        sample=sample,
        temperature=temperature,
        seed=seed,
        merge=make_merge(beta=beta, eta=eta, top_p=top_p, pooling=pooling),
        prior=numbers("prior", prior, float) if prior is not None else (),
        max_length=max_length,
        json=json,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    for note in request.check().notes():
        sys.stderr.write(f"ropewalk: {note}\n")
    if json is not None and json != STANDARD_OUTPUT:
        _make_folder(json.parent)
    set_threads(threads)
    from ropewalk.evals.ask.answering import Asking
    from ropewalk.evals.ask.show import as_json, show
    from ropewalk.evals.ask.streaming import LiveAnswer
    from ropewalk.evals.run_folder import write_atomically

    asking = Asking(request)
    console = Console()
    if console.is_terminal and len(request.questions) == 1 and json != STANDARD_OUTPUT:
        with LiveAnswer(asking.tokenizer, console) as live:
            answered = asking.answer(live)
    else:
        answered = asking.answer()
    if json == STANDARD_OUTPUT:
        sys.stdout.write(as_json(answered, request))
        return
    if json is not None:
        write_atomically(json, as_json(answered, request))
    show(answered, request, console)


def _make_folder(folder: Path) -> None:
    """Before an answer is worked out that could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--json: folder {str(folder)!r} cannot be made: {error}") from error


def _line_breaks(text: str) -> str:
    r"""Text with `\n` and `\t` as a shell passes them on turned into what they stand for."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
