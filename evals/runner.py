"""Carries out a plan: variants × tasks × lengths, batch by batch, each written before the next.

Only the logits of scored positions are computed; `ropewalk.evals.batches` has how.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from ropewalk.evals.batches import Batches
from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.logits import scored_logits
from ropewalk.evals.models import ModelSource
from ropewalk.evals.plan import Plan, Subject, make_plan
from ropewalk.evals.progress import WorkProgress
from ropewalk.evals.request import Request
from ropewalk.evals.run_file import RunFile, check_configuration
from ropewalk.evals.tasks.task import Sample, Task

__all__ = ["Runner", "cost", "evaluate", "scored_logits"]


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
        self._batches = Batches(dtype=plan.dtype, device=plan.device, most=plan.batch_size)

    def run(self) -> None:
        """Evaluates variant by variant, so that each is complete as early as possible."""
        work = [
            (subject, task, length, missing)
            for subject in self._plan.subjects
            for task in self._plan.tasks
            for length in self._plan.lengths[task.name]
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
            len(self._samples(subject, task, length))
            for subject in self._plan.subjects
            for task in self._plan.tasks
            for length in self._plan.lengths[task.name]
        )
        if self._console is not None and missing < planned:
            self._console.print(
                f"continuing: {planned - missing} of {planned} samples are done", highlight=False
            )

    def _samples(self, subject: Subject, task: Task, length: int) -> list[Sample]:
        """The task's samples, without those that the subject cannot read."""
        return [
            sample
            for sample in task.samples(length)
            if sample.reading != "windows" or subject.has_parallel_windows
        ]

    def _missing(self, subject: Subject, task: Task, length: int) -> list[Sample]:
        return [
            sample
            for sample in self._samples(subject, task, length)
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
            for batch in self._batches.of(model, samples):
                started = perf_counter()
                figures = [
                    task.measure(sample, logits)
                    for sample, logits in zip(
                        batch, self._batches.logits(model, batch), strict=True
                    )
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


def cost(sample: Sample) -> float:
    """Work of one sample in arbitrary units, for the estimate of the time that is left."""
    return sum(length * (1.0 + length / 4096) for length in sample.lengths())
