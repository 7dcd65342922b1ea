"""Turns a trained model into a folder that transformers loads: weights in bf16, tokenizer, card."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ropewalk.evals.default_model import architecture

LARGEST_FILE = 12_000_000


def publish(
    model: nn.Module, folder: Path, *, card: str, native_variant: str | None = None
) -> Path:
    """Writes the model folder.

    Args:
        model: the trained Llama; left as it is.
        folder: written to; made if missing.
        card: the model card, Markdown.
        native_variant: the position variant the model is meant to be run with, which loaders of
            this library read from the config's key `ropewalk`; plain RoPE if None.

    Returns:
        `folder`.

    Raises:
        ValueError: the weights take more than 12 MB.
    """
    half = architecture.untrained(0)
    nn.Module.to(half, torch.bfloat16)  # transformers' own `to` hides its type
    half.load_state_dict(model.state_dict())
    if native_variant:
        half.config.ropewalk = {"variant": native_variant}
    half.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes files that only their owner may read
    size = weights.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"expected weights of at most {LARGEST_FILE} bytes, got {size}")
    architecture.tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(card)
    return folder


def load_weights(model: nn.Module, checkpoint: Path) -> nn.Module:
    """Puts the weights of a training checkpoint into `model` and returns it."""
    prefix = "model."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in load_file(checkpoint).items()
        if name.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"expected the weights of the bundled architecture in {checkpoint}; "
            f"missing {json.dumps(missing)}, unexpected {json.dumps(unexpected)}"
        )
    return model
