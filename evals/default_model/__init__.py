"""The models and the text that ship with the package, and how they were made.

* `corpus`: which text they are trained on, and which is held out.
* `mixture`, `recipe`, `train`: what they are trained with and how; `ropewalk train-default`.
* `publish`: a trained checkpoint as a model folder that transformers loads.
* `held_out`: the text that evaluations use by default.
"""

from pathlib import Path

from ropewalk.evals.default_model.held_out import Document, held_out_documents

__all__ = ["Document", "bundled_models", "held_out_documents"]

NAMES = {"default": "plain", "default-inverse-leaky": "inverse_leaky"}


def bundled_models() -> dict[str, Path]:
    """Name → folder (config, tokenizer, safetensors, model card) of each model that is shipped."""
    folder = Path(__file__).parent
    return {
        name: folder / place
        for name, place in NAMES.items()
        if (folder / place / "model.safetensors").exists()
    }
