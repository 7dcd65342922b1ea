"""From a request to a plan: everything an evaluation needs, settled before weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.models import ModelSource, choose_device, choose_dtype, open_model
from ropewalk.evals.request import MULTIPLES, Request, split_variant
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


@dataclass(frozen=True)
class Plan:
    """An evaluation with everything settled.

    Attributes:
        subjects: in the order in which they are run and shown.
        tasks: the tasks.
        lengths: ascending context lengths, in tokens.
        dtype: of the weights.
        device: where the model runs.
        batch_size: the user's bound on it, if any.
        configuration: all that decides the results, as plain data; two runs with the same
            configuration give the same results.
    """

    subjects: Sequence[Subject]
    tasks: Sequence[Task]
    lengths: Sequence[int]
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
    lengths = tuple(request.lengths) or tuple(main.trained_length * times for times in MULTIPLES)
    subjects = []
    for text, (variant, name) in split.items():
        source = sources[name or request.model]
        try:
            resolved = variant.over(source.native).resolve(source.trained_length, lengths[-1])
        except (ValueError, OverflowError) as error:
            raise InputError(f"variant {text!r}: {one_line(error)}") from error
        subjects.append(Subject(text, source, resolved))
    tasks = [TASKS[name].make(request, main.tokenizer, lengths) for name in request.tasks]
    for task in tasks:
        task.samples(lengths[0])  # raises if the shortest length has no room for a sample
    configuration = {
        "model": request.model,
        "models": {
            name: {"fingerprint": source.fingerprint, "trained_length": source.trained_length}
            for name, source in sources.items()
        },
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "variants": {subject.label: subject.variant.describe() for subject in subjects},
        "lengths": list(lengths),
        "tasks": {task.name: task.settings() for task in tasks},
    }
    return Plan(subjects, tasks, lengths, dtype, device, request.batch_size, configuration)


def _check_same_tokenizer(one: ModelSource, other: ModelSource) -> None:
    """The models of a run read the same tokens, or their losses could not be compared."""
    first, second = (source.tokenizer(TOKENIZER_PROBE)["input_ids"] for source in (one, other))
    if first != second:
        raise InputError(
            f"models {one.name!r} and {other.name!r} have different tokenizers; "
            "evaluate them in separate runs"
        )
