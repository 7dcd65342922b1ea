"""Runs an earlier commit's code on request: a JSON line in, a JSON line out, until the input ends.

    python -P serve.py FOLDER THREADS     FOLDER holds the commit's blocks/, kernels/, llm/, evals/

    in   {"evaluation": {"model", "rule", "length", "longest", "documents", "scored"}}
         {"attention": {"rule", "batch", "heads", "kv_heads", "queries", "keys", "head_dim"},
          "output": a path, if the output is wanted}
    out  {"seconds": …, "processor": …}, with "bits" of an evaluation; or {"error": …}

What is timed is what `EvaluationWorkload` and `AttentionWorkload` time of today's code, with the
same documents and random numbers. Pitfall: `benchmarks` is not imported here, since it would bring
in the checkout; and only what commits of all ages have is used, so no backend is named.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def main(folder: str, threads: str) -> None:
    """Answers requests until there are no more."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    package = ModuleType("ropewalk", "An earlier commit's folders.")
    package.__path__ = [folder]
    sys.modules["ropewalk"] = package
    for line in sys.stdin:
        try:
            answer = answer_to(json.loads(line), Path(folder).resolve())
        except Exception as error:  # whatever it is, the one who asked must hear of it
            said = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {said[0] if said else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def answer_to(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Carries out one request."""
    if "evaluation" in request:
        wanted = request["evaluation"]
        model, task = _model_and_task(
            wanted["model"], wanted["longest"], wanted["documents"], wanted["scored"]
        )
        rule = _rule(wanted["rule"])
        _require_only(folder)
        figures, bits = _timed(lambda: _evaluate(model, task, rule, wanted["length"]))
        return {**figures, "bits": bits}
    wanted = dict(request["attention"])
    rule = _rule(wanted.pop("rule"))
    attend = _attention(**wanted)
    _require_only(folder)
    with torch.no_grad():
        figures, output = _timed(lambda: attend(rule))
    if request.get("output"):
        torch.save(output, request["output"])
    return figures


def _timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    used, began = time.process_time(), time.perf_counter()
    result = call()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor": processor}, result


def _rule(wanted: dict[str, Any]) -> Any:
    from ropewalk.blocks import rotary

    return getattr(rotary, wanted["kind"])(**wanted["parameters"])


def _require_only(folder: Path) -> None:
    """Modules of the installed package must not stand in for the commit's."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("ropewalk.") and file and folder not in Path(file).resolve().parents:
            raise RuntimeError(f"expected {name} from {folder}, got {file}")


@lru_cache(maxsize=1)
def _model_and_task(name: str, longest: int, documents: int, scored: int) -> tuple[Any, Any]:
    from ropewalk.evals.documents import cut, read_texts
    from ropewalk.evals.models import open_model
    from ropewalk.evals.tasks.perplexity import Perplexity

    source = open_model(name)
    texts = cut(read_texts(()), source.tokenizer, length=longest, count=documents)
    model = source.load(dtype=torch.float32, device=torch.device("cpu"))
    return model, Perplexity(texts, score_tokens=scored)


def _evaluate(model: Any, task: Any, rule: Any, length: int) -> list[float]:
    """Bits per byte of each document."""
    from ropewalk.evals.runner import scored_logits
    from ropewalk.llm import plug

    found = []
    with torch.inference_mode(), plug(model, distance=rule):
        for sample in task.samples(length):
            tokens = torch.from_numpy(sample.tokens)[None]
            (logits,) = scored_logits(model, tokens, sample.scored)
            nats = task.measure(sample, logits)["nats"]
            nats = math.nan if nats is None else nats
            found.append(nats * sample.scored / (math.log(2) * sample.about["bytes"]))
    return found


@lru_cache(maxsize=1)
def _attention(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, head_dim: int
) -> Callable[[Any], Any]:
    """The op under a rule, on inputs that are drawn once."""
    from ropewalk.blocks.rotary import RotaryEmbedding
    from ropewalk.kernels.rotary_attention import rotary_attention

    generator = torch.Generator().manual_seed(0)
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    query, key, value = (
        torch.randn((batch, *size, head_dim), generator=generator) for size in sizes
    )
    rotary = RotaryEmbedding(head_dim)
    return lambda rule: rotary_attention(query, key, value, rotary=rotary, distance=rule)


if __name__ == "__main__":
    main(*sys.argv[1:])
