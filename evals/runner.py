"""Carries out a plan: variants × tasks × lengths, batch by batch, each written before the next.

Only the logits of scored positions are computed. Samples of equal length share a batch; its size is
chosen to fit memory and halved whenever memory does run out.
"""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from ropewalk.evals import memory
from ropewalk.evals.errors import EvaluationError, InputError, one_line
from ropewalk.evals.models import ModelSource
from ropewalk.evals.plan import Plan, Subject, make_plan
from ropewalk.evals.progress import WorkProgress
from ropewalk.evals.request import Request
from ropewalk.evals.run_file import RunFile, check_configuration
from ropewalk.evals.tasks.task import Sample, Task
from ropewalk.llm.last_queries import only_last_read


def evaluate(request: Request, console: Console | None = None) -> dict[str, Any]:
    """Carries out a request, or what is left of it, and returns the content of the run's file.

    Args:
        request: what to evaluate, and where the run lives.
        console: where progress is shown; nowhere if None.

    Raises:
        InputError: the request cannot be carried out; nothing has been written then.
        EvaluationError: memory does not suffice for a single sequence.
    """
    plan = make_plan(request)
    check_configuration(request.out, plan.configuration)
    with RunFile(request.out, plan.configuration) as run:
        Runner(plan, run, console).run()
        return run.content


class Runner:
    """Evaluates what a run's file lacks.

    Args:
        plan: what to evaluate.
        run: the open run.
        console: where progress is shown; nowhere if None.
    """

    def __init__(self, plan: Plan, run: RunFile, console: Console | None = None) -> None:
        self._plan = plan
        self._run = run
        self._console = console
        self._most: dict[int, int] = {}

    def run(self) -> None:
        """Evaluates variant by variant, so that each is complete as early as possible."""
        work = [
            (subject, task, length, missing)
            for subject in self._plan.subjects
            for task in self._plan.tasks
            for length in self._plan.lengths
            if (missing := self._missing(subject, task, length))
        ]
        if work:
            self._say_what_is_done(sum(len(missing) for *_, missing in work))
            models = self._load(list(dict.fromkeys(item[0].source.name for item in work)))
            total = sum(cost(sample) for *_, missing in work for sample in missing)
            with WorkProgress(self._console, total) as progress, torch.inference_mode():
                for subject, task, length, missing in work:
                    self._evaluate(
                        models[subject.source.name], subject, task, length, missing, progress
                    )
        self._run.complete()

    def _say_what_is_done(self, missing: int) -> None:
        """A continued run shows progress over what is left; this tells that nothing was lost."""
        planned = sum(
            len(task.samples(length))
            for _ in self._plan.subjects
            for task in self._plan.tasks
            for length in self._plan.lengths
        )
        if self._console is not None and missing < planned:
            self._console.print(
                f"continuing: {planned - missing} of {planned} samples are done", highlight=False
            )

    def _missing(self, subject: Subject, task: Task, length: int) -> list[Sample]:
        return [
            sample
            for sample in task.samples(length)
            if not self._run.has((subject.label, task.name, length, sample.key))
        ]

    def _load(self, names: Sequence[str]) -> dict[str, Any]:
        """Loads the models and plugs every variant once, so that a refusal comes before work."""
        sources: dict[str, ModelSource] = {
            subject.source.name: subject.source for subject in self._plan.subjects
        }
        models = {}
        for name in names:
            models[name] = sources[name].load(dtype=self._plan.dtype, device=self._plan.device)
            for subject in self._plan.subjects:
                if subject.source.name == name:
                    self._plug(subject, models[name]).__exit__(None, None, None)
        return models

    def _plug(self, subject: Subject, model: Any) -> Any:
        """An entered plug of the subject's variant."""
        try:
            handle = subject.variant.plug(model)
            handle.__enter__()
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"variant {subject.label!r} on model {subject.source.name!r}: {one_line(error)}"
            ) from error
        return handle

    def _evaluate(
        self,
        model: Any,
        subject: Subject,
        task: Task,
        length: int,
        samples: Sequence[Sample],
        progress: WorkProgress,
    ) -> None:
        progress.describe(subject.label, task.name, length)
        handle = self._plug(subject, model)
        try:
            for batch in self._batches(model, length, samples):
                started = perf_counter()
                figures = [
                    task.measure(sample, logits)
                    for sample, logits in zip(batch, self._logits(model, batch), strict=True)
                ]
                seconds = (perf_counter() - started) / len(batch)
                self._run.add(
                    [
                        {
                            "variant": subject.label,
                            "task": task.name,
                            "length": length,
                            "sample": sample.key,
                            **sample.about,
                            **measured,
                            "seconds": round(seconds, 4),
                        }
                        for sample, measured in zip(batch, figures, strict=True)
                    ]
                )
                progress.advance(sum(cost(sample) for sample in batch))
        finally:
            handle.__exit__(None, None, None)

    def _batches(
        self, model: Any, length: int, samples: Sequence[Sample]
    ) -> Iterator[list[Sample]]:
        """Consecutive samples of equal length, as many at once as fit."""
        position = 0
        while position < len(samples):
            first = samples[position]
            candidates = samples[position : position + self._size(model, length, first)]
            batch = list(takewhile(partial(_equally_long, first), candidates))
            yield batch
            position += len(batch)

    def _size(self, model: Any, length: int, sample: Sample) -> int:
        size = memory.batch_size(
            model.config,
            length=len(sample.tokens),
            scored=sample.scored,
            dtype=self._plan.dtype,
            device=self._plan.device,
        )
        return min(size, self._plan.batch_size or size, self._most.get(length, size))

    def _logits(
        self, model: Any, batch: Sequence[Sample]
    ) -> Iterator[Float[Tensor, "scored vocabulary"]]:
        """Logits of each sample's scored tokens; runs in parts where memory runs out."""
        length = len(batch[0].tokens)
        scored = max(sample.scored for sample in batch)
        tokens = torch.from_numpy(np.stack([sample.tokens for sample in batch]))
        size = len(batch)
        start = 0
        while start < len(batch):
            size = min(size, len(batch) - start)
            try:
                part = scored_logits(
                    model, tokens[start : start + size].to(self._plan.device), scored
                )
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                if size == 1:
                    raise EvaluationError(
                        f"out of memory on one sequence of {length} tokens; what was measured is "
                        "kept, use smaller lengths or a larger device"
                    ) from error
                size //= 2
                self._most[length] = size
                continue
            for sample, logits in zip(batch[start : start + size], part, strict=True):
                yield logits[-sample.scored :]
            start += size


def scored_logits(
    model: Any, tokens: Int[Tensor, "batch length"], scored: int
) -> Float[Tensor, "batch scored vocabulary"]:
    """Logits that predict the last `scored` of `tokens`, each from all tokens before it.

    The last layer's attention is computed for the tokens whose logits these are only.
    Models whose forward pass takes `logits_to_keep` compute no others; for the rest all are
    computed and sliced, because a model may scale or cap its logits after the head.
    """
    inputs = tokens[:, :-1]
    with only_last_read(model, scored):
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            return model(input_ids=inputs, use_cache=False, logits_to_keep=scored).logits
        return model(input_ids=inputs, use_cache=False).logits[:, -scored:]


def _equally_long(one: Sample, other: Sample) -> bool:
    return len(one.tokens) == len(other.tokens)


def cost(sample: Sample) -> float:
    """Work of one sample in arbitrary units, for the estimate of the time that is left."""
    length = len(sample.tokens)
    return length * (1.0 + length / 4096)
