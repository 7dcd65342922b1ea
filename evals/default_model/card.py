"""The model card of a bundled model: what it is, how to run it, exactly how it was made."""

from collections.abc import Mapping
from typing import Any

from ropewalk.evals.default_model.architecture import TRAINED_LENGTH
from ropewalk.evals.default_model.recipe import Recipe

MEANINGS = {
    "text": "windows of source text",
    "copy": "a random string repeated; the repetitions are the targets",
    "pairs": "lines `key = value`, then keys again, asking for their values",
    "passkey": "the passkey prompt; the number's second and third mention are the targets",
}


def model_card(
    recipe: Recipe,
    state: Mapping[str, Any],
    measured: Mapping[str, float],
    *,
    parameters: int,
) -> str:
    """The card, Markdown.

    Args:
        recipe: what was trained.
        state: the checkpoint's state; `python` names the versions.
        measured: validation of the finished model, run as it is meant to be; see `train.validate`.
        parameters: number of weights.
    """
    trained_under = (
        f"`{recipe.variant}` plugged in while training" if recipe.variant else "plain RoPE"
    )
    run_with = (
        f"`{recipe.native_variant}`, which `config.json` names under the key `ropewalk` and "
        "`ropewalk eval` plugs in by itself"
        if recipe.variant
        else "plain RoPE; any variant can be plugged in"
    )
    phases = "\n".join(
        f"| {phase.until:.1%} | {phase.length} | "
        + " | ".join(f"{phase.shares.get(kind, 0.0):.1%}" for kind in MEANINGS)
        + " |"
        for phase in recipe.phases
    )
    kinds = "\n".join(f"- `{kind}`: {meaning}" for kind, meaning in MEANINGS.items())
    return f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
---

# {recipe.name.replace("_", " ")}: a byte-level Llama for measuring RoPE variants

{parameters / 1e6:.2f} million parameters, bf16, trained on contexts of {TRAINED_LENGTH} bytes. It
is a measuring instrument: small enough for a laptop's processor, good enough at copying that one
sees which RoPE variant still finds what stands far back. It is no assistant and writes Python only
roughly.

- Trained under: {trained_under}.
- To be run with: {run_with}.
- Tokenizer: ByT5's bytes (arXiv 2105.13626); a token is a byte, so lengths are bytes.
- Run so, {measured["bits_per_byte"]:.3f} bits per byte on the last 256 of 512 bytes of held-out
  library files, and passkey {measured["passkey"]:.0%} within 512 bytes.

## How it was made

`ropewalk train-default --recipe {recipe.name} --compile --threads 1 --out FOLDER`, on a processor
with bf16 matrix units; {state["python"]}.

- Text: the source of Python's standard library, found through `sysconfig`. A file is held out when
  the SHA-256 of its path ends in a byte below 38; held-out files are never trained on. The
  library's test suite makes up 30 % of the windows.
- {recipe.steps} steps of {recipe.tokens_per_step} bytes, seed {recipe.seed}, bf16 autocast over
  float32 weights.
- Muon for the layers' matrices (rate {recipe.matrix_rate:g}, weight decay {recipe.weight_decay:g},
  momentum 0.95), AdamW for embedding and norms (rate {recipe.rate:g}, betas 0.9 and 0.95); warm-up
  over {recipe.warmup} steps, constant until {recipe.decay_from:.0%} of the run, then linearly to 0;
  gradient norm at most 1.
- The loss is averaged within each kind of row; text weighs 1, each synthetic kind
  {recipe.synthetic_weight:g}.

| until | length | {" | ".join(MEANINGS)} |
|---|---|{"---|" * len(MEANINGS)}
{phases}

{kinds}

The figures against context length are in the repository's README; `make demo` measures them again.
"""
