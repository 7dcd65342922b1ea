"""What is asked of which files, and the checks that need no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.evals.ask.contexts import Contexts, read_contexts
from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.request import split_variant
from ropewalk.evals.run_folder import check_out
from ropewalk.kernels.context_merge import POOLINGS, Pooling
from ropewalk.llm.variants import ROPE, nearest

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True)
class AskRequest:
    """Questions about files.

    Attributes:
        contexts: files and folders; every file is a context.
        questions: as they are asked.
        split: whether files that are longer than the model reads become several contexts.
        model: bundled name, folder or hub id.
        variant: in the grammar of variants.
        prefix: stands before every context.
        separator: stands between context and question.
        chat: whether all of that stands in the chat template of the model's tokenizer.
        stop: texts before which an answer ends.
        max_new_tokens: the greatest length of an answer.
        sample: whether tokens are drawn; the likeliest is taken otherwise.
        temperature: when drawing; None is 1.
        seed: when drawing; None is 0.
        merge: how the contexts' distributions become one.
        prior: weights of the files, none for equal ones.
        max_length: tokens that the model reads at most; None takes the model's word for it.
        json: where answers are written as JSON; "-" is the standard output.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto` or a torch device.
        trust_remote_code: whether code that comes with a model may run.
    """

    contexts: Sequence[Path]
    questions: Sequence[str]
    split: bool = False
    model: str = "default"
    variant: str = ROPE
    prefix: str = ""
    separator: str = "\n\n"
    chat: bool = False
    stop: Sequence[str] = ()
    max_new_tokens: int = 64
    sample: bool = False
    temperature: float | None = None
    seed: int | None = None
    merge: ContextMerge = field(default_factory=ContextMerge)
    prior: Sequence[float] = ()
    max_length: int | None = None
    json: Path | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    def check(self) -> Contexts:
        """Checks all that can be checked without opening a model, and reads the contexts.

        Returns:
            The contexts.

        Raises:
            InputError: says what was expected, what came and how to mend it.
        """
        if not self.questions:
            raise InputError('no question; add --question "…"')
        for question in self.questions:
            if not question.strip():
                raise InputError(f"question {question!r} is empty; ask something")
        for name, written in (
            ("question", self.questions),
            ("prefix", (self.prefix,)),
            ("separator", (self.separator,)),
            ("stop", self.stop),
        ):
            for text in written:
                if any("\ud800" <= character <= "\udfff" for character in text):
                    raise InputError(f"--{name} {text!r} is not UTF-8 text")
        if not self.contexts:
            raise InputError("no context; add --context FILE, or a folder of text files")
        for name, number in (
            ("max-new-tokens", self.max_new_tokens),
            ("max-length", self.max_length),
        ):
            if number is not None and number < 1:
                raise InputError(f"--{name} must be at least 1, got {number}")
        if not self.sample:
            for name, value in (("temperature", self.temperature), ("seed", self.seed)):
                if value is not None:
                    raise InputError(f"--{name} is only read with --sample; add it or leave it out")
        if self.temperature is not None and not 0.0 < self.temperature < float("inf"):
            raise InputError(f"--temperature must be above 0, got {self.temperature}")
        for stop in self.stop:
            if not stop:
                raise InputError("--stop must not be empty; leave it out")
        if split_variant(self.variant)[1] is not None:
            raise InputError(f"ask takes one model, --model; got {self.variant!r}")
        contexts = read_contexts(self.contexts)
        texts = contexts.texts
        if self.prior and len(self.prior) != len(texts):
            raise InputError(
                f"--prior must have a weight for each of the {len(texts)} contexts "
                f"({', '.join(list(texts)[:8])}{', …' if len(texts) > 8 else ''}), got "
                f"{len(self.prior)}"
            )
        if any(not 0.0 <= weight < float("inf") for weight in self.prior):
            raise InputError(f"--prior must be at least 0, got {min(self.prior):g}")
        if self.prior and not any(self.prior):
            raise InputError("--prior must have at least one weight above 0")
        if self.json is not None and self.json != STANDARD_OUTPUT:
            if self.json.is_dir():
                raise InputError(f"--json {str(self.json)!r} is a folder; name a file")
            check_out(self.json.parent)
        return contexts


def make_merge(*, beta: float, eta: float, top_p: float, pooling: str) -> ContextMerge:
    """How to merge, from what was written.

    Raises:
        InputError: an unknown pooling or a number out of its range.
    """
    if pooling not in POOLINGS:
        raise InputError(f"unknown pooling {pooling!r}{nearest(pooling, POOLINGS)}")
    try:
        return ContextMerge(beta=beta, eta=eta, top_p=top_p, pooling=cast("Pooling", pooling))
    except ValueError as error:
        raise InputError(f"--{one_line(error)}".replace("--top_p", "--top-p")) from error
