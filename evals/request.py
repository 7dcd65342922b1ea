"""What a user asks for, and the checks that need neither a model nor a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ropewalk.evals.errors import InputError
from ropewalk.evals.run_folder import check_run_folder
from ropewalk.evals.tasks.nbce import CONTEXTS
from ropewalk.evals.tasks.passkey import DEPTHS
from ropewalk.evals.tasks.registry import DEFAULT_TASKS, TASKS
from ropewalk.llm.variants import ROPE, Variant, nearest, parse_variant

# Options of the command line that are not called as the attribute is.
OPTION_NAMES = {"depths": "depth", "lengths": "length"}
# Positions are 32-bit in kernels.
LENGTH_BOUND = 2**31


@dataclass(frozen=True)
class Request:
    """One evaluation, as asked for.

    Attributes:
        out: folder of the run.
        model: bundled name, folder or hub id.
        variants: in the grammar of variants; `variant@model` runs it on another model.
        tasks: names from `TASKS`.
        lengths: context lengths in tokens, ascending; 1, 2, 4 and 8 times the trained one if empty.
        text: files and folders for perplexity; the bundled held-out text if empty.
        documents: how many documents perplexity takes at most.
        score_tokens: tokens scored at each document's end; half the shortest length if None.
        depths: where the pass key is hidden, from 0 to 1.
        trials: pass keys in each cell of length × depth, or of number of contexts × depth.
        seed: decides the pass keys.
        contexts: numbers of contexts, ascending, for task nbce.
        context_length: tokens of each of them; three quarters of the trained length if None.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto` or a torch device.
        batch_size: most sequences in a batch; chosen to fit memory if None.
        trust_remote_code: whether code that comes with a model may run.
    """

    out: Path
    model: str = "default"
    variants: Sequence[str] = (ROPE,)
    tasks: Sequence[str] = DEFAULT_TASKS
    lengths: Sequence[int] = ()
    text: Sequence[Path] = ()
    documents: int = 8
    score_tokens: int | None = None
    depths: Sequence[float] = DEPTHS
    trials: int = 4
    seed: int = 0
    contexts: Sequence[int] = CONTEXTS
    context_length: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False

    def check(self) -> None:
        """Checks all that can be checked without opening a model.

        Raises:
            InputError: says what was expected, what came and how to mend it.
        """
        for task in self.tasks:
            if task not in TASKS:
                raise InputError(f"unknown task {task!r}{nearest(task, TASKS)}")
        for name, values in (("task", self.tasks), ("variant", self.variants)):
            if not values:
                raise InputError(f"at least one {name} is needed")
            for value in values:
                if list(values).count(value) > 1:
                    raise InputError(f"{name} {value!r} is given twice; keep one")
        for text in self.variants:
            split_variant(text)
        if self.lengths:
            check_lengths(self.lengths)
        for name, number in (
            ("documents", self.documents),
            ("trials", self.trials),
            ("score-tokens", self.score_tokens),
            ("batch-size", self.batch_size),
            ("context-length", self.context_length),
        ):
            if number is not None and number < 1:
                raise InputError(f"--{name} must be at least 1, got {number}")
        self._check_needed()
        if not self.depths or any(not 0.0 <= depth <= 1.0 for depth in self.depths):
            raise InputError(f"depths must lie between 0 and 1, got {_listed(self.depths)}")
        if any(low >= high for low, high in pairwise(self.depths)):
            raise InputError(f"depths must be ascending, got {_listed(self.depths)}")
        if not self.contexts or any(not 1 <= count < LENGTH_BOUND for count in self.contexts):
            raise InputError(f"--contexts must be at least 1, got {_listed(self.contexts)}")
        if any(low >= high for low, high in pairwise(self.contexts)):
            raise InputError(f"--contexts must be ascending, got {_listed(self.contexts)}")
        for path in self.text:
            if not path.exists():
                raise InputError(f"text {str(path)!r} does not exist")
        check_run_folder(self.out)

    def _check_needed(self) -> None:
        """Raises InputError for a value that was given and that no task of the request reads."""
        for name in dict.fromkeys(name for entry in TASKS.values() for name in entry.options):
            readers = [task for task, entry in TASKS.items() if name in entry.options]
            default = type(self).__dataclass_fields__[name].default
            value = getattr(self, name)
            given = (tuple(value) if isinstance(value, Sequence) else value) != default
            if given and not set(readers) & set(self.tasks):
                option = OPTION_NAMES.get(name, name.replace("_", "-"))
                only = f"task {readers[0]}" if len(readers) == 1 else f"tasks {_and(readers)}"
                raise InputError(
                    f"--{option} is only read by {only}, not by what is asked for; "
                    f"leave it out or add --task {readers[0]}"
                )


def split_variant(text: str) -> tuple[Variant, str | None]:
    """Splits `variant@model` and parses the variant; the model is None where it is not named.

    Raises:
        InputError: the variant is unknown or malformed.
    """
    written, at, model = text.partition("@")
    if at and not model:
        raise InputError(f"variant {text!r} names no model after '@'")
    try:
        return parse_variant(written), model or None
    except ValueError as error:
        raise InputError(str(error)) from error


def check_lengths(lengths: Sequence[int]) -> None:
    """Raises InputError unless lengths are positive and strictly ascending."""
    if any(length < 2 for length in lengths):
        raise InputError(f"lengths must be at least 2 tokens, got {_listed(lengths)}")
    if any(length >= LENGTH_BOUND for length in lengths):
        raise InputError(f"lengths must be below 2**31 tokens, got {_listed(lengths)}")
    if any(low >= high for low, high in pairwise(lengths)):
        raise InputError(
            f"lengths must be ascending, got {_listed(lengths)}; "
            f"write {_listed(sorted(set(lengths)))}"
        )


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]
