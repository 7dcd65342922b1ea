"""The bundled model's shape and tokenizer: a five-million-parameter byte-level Llama.

The tokenizer is ByT5's (arXiv 2105.13626): one token per UTF-8 byte, shifted by three special
tokens. It needs no vocabulary file, so lengths in tokens are lengths in bytes and the loss converts
to bits per byte without a correction.
"""

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

TRAINED_LENGTH = 512
BYTE_OFFSET = 3  # <pad>, </s> and <unk> come before the 256 bytes
PAD_TOKEN, END_TOKEN = 0, 1
VOCABULARY = 264  # 3 + 256, rounded up to a multiple of 8


def to_tokens(data: bytes | np.ndarray) -> np.ndarray:
    """Token ids, int64, of raw bytes: the identity shifted by the special tokens."""
    values = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
    return values.astype(np.int64) + BYTE_OFFSET


def tokenizer() -> "ByT5Tokenizer":
    """The byte-level tokenizer, without ByT5's sentinel tokens."""
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def configuration() -> "LlamaConfig":
    """The architecture: 6 layers of width 256 with 4 heads of 64, tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=TRAINED_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=PAD_TOKEN,
        eos_token_id=END_TOKEN,
        bos_token_id=None,
        initializer_range=0.02,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def untrained(seed: int) -> "LlamaForCausalLM":
    """A freshly initialised model in float32; the same seed gives the same weights."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast("LlamaForCausalLM", LlamaForCausalLM(configuration()))
