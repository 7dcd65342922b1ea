"""The workload of asking many contexts: the bundled model, contexts of its text, greedy answers.

Every peer generates the same number of tokens, the end of the text being impossible until then, and
is judged by them: the share that is not what an independent loop in float64 generates, one context
at a time. Contexts are given as texts, so that reading them is timed too.

A row is what the tokenizer puts first, a context or nothing, separator and question. The model is
taken without a variant: rows are within the length that it was trained at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from benchmarks.case import Call, Check, Unavailable, Work
from benchmarks.evaluation import ITEMSIZE, MODEL, model_sizes
from benchmarks.roofline import attention_work

SEPARATOR = "\n\n"
QUESTIONS = (
    "In short: ",
    "The reason for this is ",
    "What is meant is ",
    "For example, ",
)

Rows = list[list[list[int]]]
"""For each question its rows as tokens, the one without context first."""
Answers = list[list[int]]
"""The tokens of each answer."""


@dataclass(frozen=True)
class Asked:
    """Questions about contexts.

    Attributes:
        contexts: how many.
        questions: how many about the same contexts.
        context_bytes: bytes of a context, which are its tokens.
        tokens: tokens of an answer.
    """

    contexts: int
    questions: int
    context_bytes: int
    tokens: int
    device: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "model": MODEL, "dtype": "float32"}


class NBCEWorkload:
    """A model, contexts and questions; peers are ways of asking.

    Attributes:
        asked: the sizes.
        model: the bundled model in float32.
        tokenizer: its tokenizer.
        contexts: texts.
        questions: texts.

    Raises:
        Unavailable: what evaluations need is not installed.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.model, self.tokenizer, text = _model_and_text(asked.device)
        size = asked.context_bytes
        self.contexts = [text[i * size : (i + 1) * size] for i in range(asked.contexts)]
        self.questions: list[str] = list(QUESTIONS[: asked.questions])
        self._ways: dict[str, Callable[[], Answers]] = {}

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return int(self.model.config.eos_token_id)

    @cached_property
    def double(self) -> Any:
        """The model in float64."""
        return _double(self.asked.device)

    @cached_property
    def rows(self) -> Rows:
        """What each row holds."""
        from ropewalk.llm.tokens import prefix_tokens

        def tokens(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        first, contexts = prefix_tokens(self.tokenizer), [tokens(x) for x in self.contexts]
        return [
            [
                [*first, *context, *tokens(SEPARATOR), *tokens(question)]
                for context in ([], *contexts)
            ]
            for question in self.questions
        ]

    def build(self, peer: str) -> Call:
        """The call that is timed."""
        # The peers' module reads this one's names.
        from benchmarks.peers.nbce import build

        self._ways[peer] = way = build(peer, self)
        return way

    def check(self, peer: str) -> Check:
        """The share of tokens that are not the oracle's; none may be."""
        found = torch.tensor(self._ways[peer]())
        if found.shape != self._expected.shape:
            raise ValueError(f"expected {self._expected.shape} tokens, got {found.shape}")
        return Check(float((found != self._expected).double().mean()), 0.0)

    @cached_property
    def _expected(self) -> torch.Tensor:
        from benchmarks.peers.nbce import one_at_a_time

        ways = (one_at_a_time(self.double, rows, self) for rows in self.rows)
        return torch.tensor(list(ways))


def nbce_work(asked: Asked) -> Work:
    """The least work: contexts are read once, each row reads its question and what is generated.

    Counted are the model's products and the attention's visible pairs; weights are read once a
    forward pass, of which there are as many as tokens, and one for the contexts.
    """
    sizes = model_sizes()
    layers, hidden, head_dim = (
        sizes[name] for name in ("num_hidden_layers", "hidden_size", "head_dim")
    )
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]

    def attention(queries: int, keys: int) -> float:
        work = attention_work(
            batch=1, heads=heads, kv_heads=kv_heads, queries=queries, keys=keys,
            head_dim=head_dim, itemsize=ITEMSIZE, backward=False,
        )  # fmt: skip
        return layers * work.flop

    tails = [len(SEPARATOR + x) + asked.tokens - 1 for x in QUESTIONS[: asked.questions]]
    read, rows = asked.contexts * asked.context_bytes, asked.contexts + 1
    pairs = asked.contexts * attention(asked.context_bytes, asked.context_bytes) + sum(
        attention(tail, tail) + asked.contexts * attention(tail, asked.context_bytes + tail)
        for tail in tails
    )
    projections = 2 * hidden * head_dim * (heads + kv_heads)
    weights = layers * (projections + 3 * hidden * sizes["intermediate_size"])
    vocabulary = hidden * sizes["vocab_size"]
    linear = weights * (read + rows * sum(tails))
    linear += vocabulary * rows * asked.tokens * asked.questions
    return Work(pairs + 2.0 * linear, float(ITEMSIZE * (asked.tokens + 1) * (weights + vocabulary)))


@lru_cache(maxsize=1)
def _model_and_text(device: str) -> tuple[Any, Any, str]:
    """The bundled model in float32, its tokenizer, and text that it was not trained on."""
    try:
        from ropewalk.evals.documents import read_texts
        from ropewalk.evals.models import open_model
    except ImportError as error:
        raise Unavailable(f"asking needs ropewalk[eval]: {error}") from None
    source = open_model(MODEL)
    # Characters of one byte, so that texts of equal length are rows of equal length.
    text = "".join(document.text for document in read_texts(()))
    plain = text.encode("ascii", "ignore").decode()
    model = source.load(dtype=torch.float32, device=torch.device(device))
    return model, source.tokenizer, plain


@lru_cache(maxsize=1)
def _double(device: str) -> Any:
    from ropewalk.evals.models import open_model

    return open_model(MODEL).load(dtype=torch.float64, device=torch.device(device))
