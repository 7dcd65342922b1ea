"""A tiny byte-level model, and requests on it that take a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.evals.request import Request

TRAINED_LENGTH = 160
# The shortest prompt of the passkey task has 264 bytes.
LENGTHS = (320, 400, 640)


def build_tiny_model(folder: Path, **changes: Any) -> Path:
    """Writes a random Llama with a byte-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer
    from transformers.utils import logging

    config = LlamaConfig(
        **{
            "vocab_size": 264,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": TRAINED_LENGTH,
            "initializer_range": 0.4,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": None,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a tiny random model trained at 160 tokens, so to say."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_request(tiny_model, tmp_path) -> Callable[..., Request]:
    """Makes a request on the tiny model that takes about a second."""

    def make(**changes: Any) -> Request:
        tasks = changes.get("tasks", ("perplexity", "passkey"))
        read = {}
        if "perplexity" in tasks:
            read["documents"] = 3
        if "passkey" in tasks:
            read |= {"depths": (0.0, 1.0), "trials": 2}
        return Request(
            **{
                "out": tmp_path / "run",
                "model": str(tiny_model),
                "variants": ("rope", "rerope+log-n"),
                "lengths": LENGTHS,
                **read,
                **changes,
            }
        )

    return make
