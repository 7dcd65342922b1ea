"""The tasks there are: name → how to make one from a request, and which options it reads.

A new task becomes known to the command line, to plans and to resumption by its entry in `TASKS`;
there is no other list of tasks outside `ropewalk.evals.report`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.evals.documents import cut, read_texts
from ropewalk.evals.errors import InputError
from ropewalk.evals.tasks.nbce import ManyContexts
from ropewalk.evals.tasks.passkey import Passkey
from ropewalk.evals.tasks.perplexity import Perplexity
from ropewalk.evals.tasks.task import Task
from ropewalk.llm.tokens import prefix_tokens

if TYPE_CHECKING:
    from ropewalk.evals.request import Request


MULTIPLES = (1, 2, 4, 8)


def _prompt_lengths(request: "Request", trained_length: int) -> tuple[int, ...]:
    """The lengths that were asked for, or the usual multiples of the trained one."""
    return tuple(request.lengths) or tuple(trained_length * times for times in MULTIPLES)


@dataclass(frozen=True)
class TaskEntry:
    """One task that can be asked for.

    Attributes:
        make: from a request, the model's tokenizer and the ascending lengths to the task; raises
            InputError where the request cannot be carried out.
        options: attributes of the request that it reads and not every task does.
        lengths: from a request and the trained length, the ascending lengths in tokens at which it
            is measured.
    """

    make: Callable[["Request", Any, Sequence[int]], Task]
    options: Sequence[str]
    lengths: Callable[["Request", int], tuple[int, ...]] = _prompt_lengths


def _perplexity(request: "Request", tokenizer: Any, lengths: Sequence[int]) -> Task:
    prefix = prefix_tokens(tokenizer)
    score_tokens = request.score_tokens or lengths[0] // 2
    needed = len(prefix) + score_tokens + 1
    if needed > lengths[0]:
        less = f" less the {len(prefix)} tokens that the tokenizer puts first" if prefix else ""
        raise InputError(
            f"--score-tokens must be smaller than the shortest length {lengths[0]}{less}, got "
            f"{score_tokens}; that takes lengths of at least {needed}"
        )
    documents = cut(
        read_texts(request.text),
        tokenizer,
        length=lengths[-1] - len(prefix),
        count=request.documents,
    )
    return Perplexity(documents, score_tokens=score_tokens, prefix=prefix)


def _passkey(request: "Request", tokenizer: Any, lengths: Sequence[int]) -> Task:
    return Passkey(tokenizer, depths=request.depths, trials=request.trials, seed=request.seed)


def _many_contexts(request: "Request", tokenizer: Any, lengths: Sequence[int]) -> Task:
    return ManyContexts(
        tokenizer,
        contexts=request.contexts,
        context_length=lengths[0] // request.contexts[0],
        depths=request.depths,
        trials=request.trials,
        seed=request.seed,
    )


def _total_lengths(request: "Request", trained_length: int) -> tuple[int, ...]:
    """All contexts together; each leaves a quarter of the trained length for what is asked."""
    each = request.context_length or trained_length * 3 // 4
    return tuple(each * count for count in request.contexts)


TASKS: dict[str, TaskEntry] = {
    "perplexity": TaskEntry(_perplexity, ("lengths", "text", "documents", "score_tokens")),
    "passkey": TaskEntry(_passkey, ("lengths", "depths", "trials", "seed")),
    "nbce": TaskEntry(
        _many_contexts,
        ("contexts", "context_length", "depths", "trials", "seed"),
        _total_lengths,
    ),
}
DEFAULT_TASKS = ("perplexity", "passkey")
