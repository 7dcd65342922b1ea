"""A character tokenizer, tiny models of every kind of cache and position, an independent loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm import NBCE

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,:?!\n0123456789-'"
PAD, BEGIN, END = 0, 1, 2
FIRST = 3
_SIZES: dict[str, Any] = {
    "vocab_size": FIRST + len(CHARACTERS),
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "initializer_range": 0.25,
}
_LLAMA_SIZES = {
    **_SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
}
_ALTERNATING = ["sliding_attention", "full_attention"]
# Name: config class, then its sizes. Each stands for a scheme of positions or a kind of cache.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA_SIZES),
    "qwen3": ("Qwen3Config", {**_LLAMA_SIZES, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_LLAMA_SIZES, "sliding_window": 7}),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA_SIZES, "head_dim": 8, "sliding_window": 7, "layer_types": _ALTERNATING},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA_SIZES, "head_dim": 8, "sliding_window": 7, "layer_types": _ALTERNATING},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            **_LLAMA_SIZES,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 4,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    # Layers that read another layer's keys and cache none.
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_LLAMA_SIZES,
            "num_hidden_layers": 3,
            "layer_types": [*_ALTERNATING, "full_attention"],
            "num_kv_shared_layers": 1,
            "sliding_window": 7,
            "head_dim": 8,
            "vocab_size_per_layer_input": FIRST + len(CHARACTERS),
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 3,
        },
    ),
    # Chunked attention.
    "llama4": (
        "Llama4TextConfig",
        {
            **_LLAMA_SIZES,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8,
            "head_dim": 8,
        },
    ),
    "gpt2": ("GPT2Config", {**_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "opt": (
        "OPTConfig",
        {
            **_SIZES,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
            "word_embed_proj_dim": 32,
            "init_std": 0.25,
        },
    ),
    "bloom": ("BloomConfig", {**_SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {**_SIZES, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96},
    ),
    "falcon-alibi": (
        "FalconConfig",
        {
            **_SIZES,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "alibi": True,
            "new_decoder_architecture": False,
        },
    ),
}
# Their caches hold a state of which no token can be taken out again.
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": (
        "MambaConfig",
        {**_SIZES, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "rwkv": (
        "RwkvConfig",
        {**_SIZES, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_LLAMA_SIZES,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
SEPARATOR = "\n"


@dataclass
class Told:
    """What the independent loop says of one question."""

    tokens: list[int]
    log_probs: list[np.ndarray]
    chosen: list[int]
    entropies: list[np.ndarray]
    sources: list[int]


class Recorder(LogitsProcessor):
    """Keeps the scores that `generate` shows to its processors."""

    def __init__(self) -> None:
        self.scores: list[torch.Tensor] = []
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids)
        self.scores.append(scores)
        return scores


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def make_recorder() -> Callable[[], Recorder]:
    return Recorder


def tiny_model(name: str = "llama", **overrides: Any) -> PreTrainedModel:
    """A random model in float64, so that results can be compared digit by digit."""
    config_class, settings = {**MODELS, **RECURRENT}[name]
    config = getattr(transformers, config_class)(**{**settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "time_decay")):
                # Slow enough not to forget a context over the question.
                torch.nn.init.constant_(parameter.data, -4.0)
            elif parameter.ndim == 1:
                # Initial values that are all alike would hide mistakes.
                torch.nn.init.uniform_(parameter.data, 0.2, 0.8)
    return model.double().eval()


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


def character_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token a character; puts <s> first, as Llama's does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {"<pad>": PAD, "<s>": BEGIN, "</s>": END}
    vocabulary |= {character: FIRST + place for place, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="-"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **options}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token is not None},
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer()


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return character_tokenizer


@pytest.fixture
def reader(model, tokenizer) -> NBCE:
    """Has read the three contexts."""
    reader = NBCE(model, tokenizer, separator=SEPARATOR)
    reader.encode(CONTEXTS, prefix=PREFIX)
    return reader


def states_of(encoded: Any) -> list[torch.Tensor]:
    """All keys and values that are kept."""
    kept = (encoded.kept.base, *encoded.kept.contexts)
    return [part for layers in kept for layer in layers for part in layer]


@pytest.fixture
def states() -> Callable[..., list[torch.Tensor]]:
    return states_of


def ids(text: str) -> list[int]:
    return [FIRST + CHARACTERS.index(character) for character in text]


def pool(
    kind: str,
    rows: Sequence[np.ndarray],
    cut: Sequence[np.ndarray],
    score: np.ndarray,
    prior: np.ndarray,
) -> np.ndarray:
    """One distribution of the contexts', token by token as the equations have it."""
    if kind == "min_entropy":
        return cut[int(score.argmin())]
    contexts = [place for place, weight in enumerate(prior) if weight > 0]
    pooled = np.full(len(cut[0]), -np.inf)
    for token in range(len(pooled)):
        said = [cut[place][token] for place in contexts]
        if kind == "mean":
            pooled[token] = np.dot(prior[contexts] / prior[contexts].sum(), said)
        elif kind == "max":
            pooled[token] = max(
                one + np.log(prior[place] / prior.mean())
                for place, one in zip(contexts, said, strict=True)
            )
        else:
            assert kind == "entropy_weighted"
            weights = np.exp(-score[contexts])
            with np.errstate(divide="ignore"):
                pooled[token] = np.log(np.dot(weights / weights.sum(), np.exp(said)))
    if not np.isfinite(pooled).any():
        # A mean of truncated distributions that share no token.
        for token in range(len(pooled)):
            if any(np.isfinite(cut[place][token]) for place in contexts):
                each = [rows[place][token] for place in contexts]
                pooled[token] = np.dot(prior[contexts] / prior[contexts].sum(), each)
    return pooled


def one_at_a_time(
    model: PreTrainedModel,
    question: str,
    contexts: Sequence[str] = CONTEXTS,
    *,
    prefix: str = PREFIX,
    merge: ContextMerge | None = None,
    weights: Sequence[float] | None = None,
    steps: int = 8,
    pick: Callable[[np.ndarray], int] = lambda log_probs: int(log_probs.argmax()),
) -> Told:
    """NBCE as the article has it: no cache, no padding, no batch; each row in its own pass."""
    merge = merge or ContextMerge()
    texts = [prefix + SEPARATOR + question]
    texts += [prefix + context + SEPARATOR + question for context in contexts]
    told = Told([], [], [], [], [])
    prior = np.ones(len(contexts)) if weights is None else np.array(weights, dtype=np.float64)
    for _ in range(steps):
        rows = []
        for text in texts:
            row = torch.tensor([[BEGIN, *ids(text), *told.tokens]])
            with torch.no_grad():
                logits = model(row, use_cache=False).logits[0, -1].double().numpy()
            rows.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        cut, entropies = [], []
        for row in rows:
            p = np.exp(row)
            above = np.array([p[p > value].sum() for value in p])
            cut.append(np.where(above < merge.top_p, row, -np.inf))
            kept = p[above < merge.top_p]
            entropy, mass = -(kept * np.log(kept)).sum(), kept.sum()
            if merge.renormalise_entropy:
                entropy = entropy / mass + np.log(mass)
            entropies.append(entropy)
        with np.errstate(divide="ignore"):
            score = np.array(entropies[1:]) - np.log(prior / prior.mean())
        if told.chosen:
            score[told.chosen[-1]] -= merge.eta
        chosen = int(score.argmin())
        bare = cut[0]
        pooled = pool(str(merge.pooling), rows[1:], cut[1:], score, prior)
        both = np.isfinite(bare) & np.isfinite(pooled)
        merged = pooled.copy()
        merged[both] = (1 + merge.beta) * pooled[both] - merge.beta * bare[both]
        merged -= np.log(np.exp(merged - merged.max()).sum()) + merged.max()
        told.tokens.append(pick(merged))
        told.log_probs.append(merged)
        told.chosen.append(chosen)
        # Where contexts are mixed, a token is from the one that thinks it most probable.
        with np.errstate(divide="ignore"):
            thinks = [row[told.tokens[-1]] for row in rows[1:]] + np.log(prior)
        told.sources.append(chosen if merge.pooling == "min_entropy" else int(thinks.argmax()))
        told.entropies.append(np.array(entropies[1:]))
        if told.tokens[-1] == END:
            break
    return told


@pytest.fixture
def loop() -> Callable[..., Told]:
    return one_at_a_time


def check_told(answer: Any, told: Told) -> None:
    """Tokens and trace are the loop's."""
    assert answer.tokens == told.tokens
    assert answer.trace.chosen.tolist() == told.sources
    np.testing.assert_allclose(answer.trace.entropies.numpy(), np.stack(told.entropies), atol=1e-5)


@pytest.fixture
def same() -> Callable[..., None]:
    return check_told
