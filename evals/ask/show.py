"""Answers with the source of every span: in colour, as plain text, or as JSON."""

import json
from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropewalk.evals.ask.answering import Answered
from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.ask.streaming import printable
from ropewalk.evals.environment import versions
from ropewalk.llm.nbce import Answer

# Told apart on a light and on a dark background; further contexts take them again, underlined.
COLOURS = ("blue", "green", "magenta", "cyan", "red", "yellow", "bright_blue", "bright_magenta")
NOTHING = "(empty answer)"
# Contexts that gave nothing are listed up to this many rows.
MOST_ROWS = 12


def show(answered: Answered, request: AskRequest, console: Console) -> None:
    """Prints answers: coloured with a legend on a terminal, `[name] text` elsewhere."""
    coloured = console.is_terminal and not console.no_color
    several = len(answered.answers) > 1
    for number, answer in enumerate(answered.answers):
        if several:
            if number and coloured:
                console.print()
            console.print(Text(f"question: {printable(answer.question)}", "bold"), soft_wrap=True)
        if not answer.spans:
            console.print(Text(NOTHING, "dim"))
        elif coloured:
            console.print(_coloured(answer), soft_wrap=True)
        else:
            for span in answer.spans:
                console.print(Text(printable(f"[{span.name}] {span.text}")), soft_wrap=True)
        if coloured:
            console.print(_legend(answer, answered.lengths))


def as_json(answered: Answered, request: AskRequest) -> str:
    """Everything about the answers, with the trace of every step, and all that decided them."""
    settings = dict(answered.settings)
    digests = settings.pop("digests")
    drawing = request.sample
    content: dict[str, Any] = {
        "versions": versions(),
        "model": request.model,
        **settings,
        "prefix": request.prefix,
        "separator": request.separator,
        "chat": request.chat,
        "split": request.split,
        "stop": list(request.stop),
        "max_new_tokens": request.max_new_tokens,
        "sample": drawing,
        "temperature": (request.temperature or 1.0) if drawing else None,
        "seed": (request.seed or 0) if drawing else None,
        "prior": list(request.prior) or None,
        "merge": {
            "beta": request.merge.beta,
            "eta": request.merge.eta,
            "top_p": request.merge.top_p,
            "pooling": request.merge.pooling,
        },
        "contexts": [
            {"name": name, "tokens": length, "sha256": digests[name]}
            for name, length in answered.lengths.items()
        ],
        "answers": [
            {
                "question": answer.question,
                "text": answer.text,
                "spans": [
                    {"text": span.text, "context": span.context, "name": span.name}
                    for span in answer.spans
                ],
                "tokens": list(answer.tokens),
                "chosen": answer.trace.chosen.tolist(),
                "entropies": answer.trace.entropies.tolist(),
            }
            for answer in answered.answers
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # File names need not be text.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _style(context: int) -> str:
    colour = COLOURS[context % len(COLOURS)]
    return colour if context < len(COLOURS) else f"{colour} underline"


def _coloured(answer: Answer) -> Text:
    text = Text()
    for span in answer.spans:
        text.append(printable(span.text), _style(span.context))
    return text


def _legend(answer: Answer, lengths: dict[str, int]) -> Table:
    """A row for each context: those that gave most first, then the surest."""
    given = Counter(answer.trace.chosen.tolist())
    means = answer.trace.entropies.double().mean(0).tolist()
    order = sorted(range(len(lengths)), key=lambda context: (-given[context], means[context]))
    shown = [context for context in order if given[context]] or order[:1]
    shown += order[len(shown) : max(MOST_ROWS, len(shown))]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("context")
    for title in ("tokens", "mean entropy", "tokens it gave"):
        table.add_column(title, justify="right", no_wrap=True)
    names = list(lengths)
    for context in shown:
        table.add_row(
            Text(printable(names[context]), _style(context) if given[context] else "dim"),
            str(lengths[names[context]]),
            f"{means[context]:.2f}",
            str(given[context] or "–"),
        )
    if len(shown) < len(names):
        table.add_row(Text(f"and {len(names) - len(shown)} more", "dim"))
    return table
