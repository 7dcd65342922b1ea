"""The workload of a whole evaluation: perplexity of the bundled model, by backend and before.

What is timed is what `ropewalk eval` does for one variant at one length, once the model is loaded
and the text is cut: the rule is plugged, probe included, each document is read, the loss on its
last tokens is taken, the rule is unplugged. Documents are read one at a time, as long ones are
there too. All peers see the same model and documents, and mean the same result: a peer's check is
how far its bits per byte are from another's, on the document where that is most: a backend's from
the other backend's, an earlier commit's from today's fastest path.

    bits per byte = nats per token · tokens / (ln 2 · bytes)

The backend is an argument of `plug`; the earlier commit runs in a process of its own (earlier/) and
chooses its path itself. Only this suite needs what `ropewalk.evals` does.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.attention import describe
from benchmarks.case import Call, Check, Unavailable, Work
from benchmarks.earlier import BEFORE, DEFAULT, EarlierCommit, earlier, wire
from benchmarks.roofline import attention_work
from benchmarks.timing import Sample
from ropewalk.evals.default_model import bundled_models
from ropewalk.kernels.rotary_attention import Backend, DistanceRule

if TYPE_CHECKING:
    from ropewalk.evals.tasks.perplexity import Perplexity

MODEL = "default"
BACKENDS: tuple[Backend, Backend] = ("auto", "reference")
TOLERANCE = 1e-5  # bits per byte
BEFORE_TOLERANCE = 1e-6  # where `TOKENS` are scored: what became faster must not have changed
TOKENS = 256
ITEMSIZE = 4  # float32, as evaluations on a CPU


@dataclass(frozen=True)
class Evaluation:
    """Perplexity at one length.

    Attributes:
        rule: the distance rule that is plugged.
        length: tokens of a document.
        longest: the suite's longest length: where documents begin, so that all lengths share them.
        documents: how many.
        scored: tokens scored at each document's end.
    """

    rule: DistanceRule
    length: int
    longest: int
    documents: int
    scored: int

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {
            "model": MODEL,
            "length": self.length,
            "documents": self.documents,
            "scored": self.scored,
            "dtype": "float32",
            "device": "cpu",
            "rule": describe(self.rule),
        }


def model_sizes() -> dict[str, int]:
    """The bundled model's configuration, without loading it."""
    return json.loads((bundled_models()[MODEL] / "config.json").read_text(encoding="utf-8"))


def evaluation_work(evaluation: Evaluation) -> Work:
    """The model's products and the attention's visible pairs; weights are read once a document.

    The last token of a document is scored and not read, so a sequence is one shorter. The last
    layer's attention is needed for as many queries as tokens are scored.
    """
    sizes, tokens = model_sizes(), evaluation.length - 1
    layers, hidden, head_dim = (
        sizes[name] for name in ("num_hidden_layers", "hidden_size", "head_dim")
    )
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    every, last = (
        attention_work(
            batch=1,
            heads=heads,
            kv_heads=kv_heads,
            queries=queries,
            keys=tokens,
            head_dim=head_dim,
            itemsize=ITEMSIZE,
            backward=False,
        )
        for queries in (tokens, evaluation.scored)
    )
    projections = 2 * hidden * head_dim * (heads + kv_heads)
    weights = layers * (projections + 3 * hidden * sizes["intermediate_size"])
    vocabulary = hidden * sizes["vocab_size"]
    attention = (layers - 1) * every.flop + last.flop
    flop = attention + 2.0 * (weights * tokens + vocabulary * evaluation.scored)
    moved = float(ITEMSIZE * (weights + vocabulary))
    return Work(evaluation.documents * flop, evaluation.documents * moved)


class EvaluationWorkload:
    """The bundled model and its documents; peers are backends, and an earlier commit.

    Args:
        evaluation: what is evaluated.
        commit: the earlier commit.

    Raises:
        Unavailable: what evaluations need is not installed.
    """

    def __init__(self, evaluation: Evaluation, commit: str = DEFAULT) -> None:
        self.evaluation = evaluation
        self.commit = commit
        self.model, self.task = _model_and_task(
            evaluation.longest, evaluation.documents, evaluation.scored
        )
        self._bits: dict[str, list[float]] = {}

    def build(self, peer: str) -> Call:
        """The evaluation with the backend of that name, or by the commit, which tells its time."""
        if peer == BEFORE:
            process = earlier(self.commit)
            return lambda: self._evaluate_before(process)
        backend = _backend(peer)
        return lambda: self._evaluate(backend)

    def check(self, peer: str) -> Check:
        """The greatest difference from the other backend or from today, in bits per byte."""
        found = self.bits(peer)
        if peer == BEFORE:
            # Rounding averages out over the tokens that are scored.
            fewer = max(1.0, TOKENS / self.evaluation.scored)
            other, tolerance = BACKENDS[0], BEFORE_TOLERANCE * math.sqrt(fewer)
        else:
            other, tolerance = BACKENDS[1 - BACKENDS.index(_backend(peer))], TOLERANCE
        pairs = zip(found, self.bits(other), strict=True)
        differences = [abs(mine - others) for mine, others in pairs]
        # A comparison with NaN is false, so that max alone could pass over one.
        lost = any(math.isnan(difference) for difference in differences)
        return Check(math.nan if lost else max(differences), tolerance, found)

    def bits(self, peer: str) -> list[float]:
        """Bits per byte of each document; an evaluation of the timed kind, if none has run."""
        if peer not in self._bits:
            self.build(peer)()
        return self._bits[peer]

    def _evaluate_before(self, process: EarlierCommit) -> Sample:
        asked = self.evaluation
        sample, answer = process.run(
            {
                "evaluation": {
                    "model": MODEL,
                    "rule": wire(asked.rule),
                    "length": asked.length,
                    "longest": asked.longest,
                    "documents": asked.documents,
                    "scored": asked.scored,
                }
            }
        )
        self._bits[BEFORE] = answer["bits"]
        return sample

    def _evaluate(self, backend: Backend) -> None:
        from ropewalk.evals.runner import scored_logits
        from ropewalk.llm import plug

        found = []
        with (
            torch.inference_mode(),
            plug(self.model, distance=self.evaluation.rule, backend=backend),
        ):
            for sample in self.task.samples(self.evaluation.length):
                tokens = torch.from_numpy(sample.tokens)[None]
                (logits,) = scored_logits(self.model, tokens, sample.scored)
                nats = self.task.measure(sample, logits)["nats"]
                nats = math.nan if nats is None else nats
                found.append(nats * sample.scored / (math.log(2) * sample.about["bytes"]))
        self._bits[backend] = found


def _backend(peer: str) -> Backend:
    for backend in BACKENDS:
        if peer == backend:
            return backend
    raise KeyError(f"expected one of {BACKENDS}, got {peer!r}")


@lru_cache(maxsize=1)
def _model_and_task(longest: int, documents: int, scored: int) -> "tuple[Any, Perplexity]":
    """Loaded once for all cases: the model is small, and cutting the text takes seconds."""
    try:
        from ropewalk.evals.documents import cut, read_texts
        from ropewalk.evals.models import open_model
        from ropewalk.evals.tasks.perplexity import Perplexity
    except ImportError as error:
        raise Unavailable(f"evaluations need ropewalk[eval]: {error}") from None
    source = open_model(MODEL)
    texts = cut(read_texts(()), source.tokenizer, length=longest, count=documents)
    task = Perplexity(texts, score_tokens=scored)
    return source.load(dtype=torch.float32, device=torch.device("cpu")), task
