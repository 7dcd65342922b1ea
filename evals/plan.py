"""From a request to a plan: everything an evaluation needs, settled before weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.models import ModelSource, choose_device, choose_dtype, open_model
from ropewalk.evals.parallel_windows import has_parallel_windows
from ropewalk.evals.request import Request, split_variant
from ropewalk.evals.tasks.registry import TASKS
from ropewalk.evals.tasks.task import Task
from ropewalk.llm.variants import ResolvedVariant

TOKENIZER_PROBE = "The pass key is 71432.\n\tdef f(x):  return x + 1  # naïve 東京\n"


@dataclass(frozen=True)
class Subject:
    """One row of the result: a variant on a model.

    Attributes:
        label: what the user wrote, and what results carry as `variant`.
        source: the model.
        variant: the variant, settled for this model.
    """

    label: str
    source: ModelSource
    variant: ResolvedVariant

    @property
    def has_parallel_windows(self) -> bool:
        """Whether nothing is plugged and every layer attends to all that was read."""
        return not self.variant.describe() and has_parallel_windows(self.source.config)


@dataclass(frozen=True)
class Plan:
    """An evaluation with everything settled.

    Attributes:
        subjects: in the order in which they are run and shown.
        tasks: the tasks.
        lengths: task → ascending context lengths at which it is measured, in tokens.
        dtype: of the weights.
        device: where the model runs.
        batch_size: the user's bound on it, if any.
        configuration: all that decides the results, as plain data; two runs with the same
            configuration give the same results.
    """

    subjects: Sequence[Subject]
    tasks: Sequence[Task]
    lengths: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device
    batch_size: int | None
    configuration: dict[str, Any]


def make_plan(request: Request) -> Plan:
    """Settles a request; opens configurations and tokenizers, but loads no weights.

    Raises:
        InputError: the request cannot be carried out.
    """
    request.check()
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    split = {text: split_variant(text) for text in request.variants}
    main = open_model(request.model, trust_remote_code=request.trust_remote_code)
    sources = {request.model: main}
    for _, name in split.values():
        if name is not None and name not in sources:
            sources[name] = open_model(name, trust_remote_code=request.trust_remote_code)
            _check_same_tokenizer(main, sources[name])
    lengths = {name: TASKS[name].lengths(request, main.trained_length) for name in request.tasks}
    longest = max(max(of_task) for of_task in lengths.values())
    subjects = []
    for text, (variant, name) in split.items():
        source = sources[name or request.model]
        try:
            resolved = variant.over(source.native).resolve(source.trained_length, longest)
        except (ValueError, OverflowError) as error:
            raise InputError(f"variant {text!r}: {one_line(error)}") from error
        subjects.append(Subject(text, source, resolved))
    tasks = [TASKS[name].make(request, main.tokenizer, lengths[name]) for name in request.tasks]
    # The shortest samples are made at once: that raises if a length has no room for one.
    shortest = [sample for task in tasks for sample in task.samples(lengths[task.name][0])]
    configuration = {
        "model": request.model,
        "models": {
            name: {"fingerprint": source.fingerprint, "trained_length": source.trained_length}
            for name, source in sources.items()
        },
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "variants": {subject.label: subject.variant.describe() for subject in subjects},
        "lengths": _prompt_lengths(lengths),
        "tasks": {task.name: task.settings() for task in tasks},
    }
    if any(sample.reading == "windows" for sample in shortest):
        configuration["parallel_windows"] = [
            subject.label for subject in subjects if subject.has_parallel_windows
        ]
    return Plan(subjects, tasks, lengths, dtype, device, request.batch_size, configuration)


def _prompt_lengths(lengths: dict[str, tuple[int, ...]]) -> list[int]:
    """The lengths of the tasks that read prompts of a length that is asked for; none without."""
    readers = [name for name in lengths if "lengths" in TASKS[name].options]
    return list(lengths[readers[0]]) if readers else []


def _check_same_tokenizer(one: ModelSource, other: ModelSource) -> None:
    """The models of a run read the same tokens, or their losses could not be compared."""
    first, second = (source.tokenizer(TOKENIZER_PROBE)["input_ids"] for source in (one, other))
    if first != second:
        raise InputError(
            f"models {one.name!r} and {other.name!r} have different tokenizers; "
            "evaluate them in separate runs"
        )
