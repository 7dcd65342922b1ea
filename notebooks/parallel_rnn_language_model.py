"""Trains small language models with recurrent mixers; `parallel_rnn.ipynb` draws what this writes.

    OMP_NUM_THREADS=1 python notebooks/parallel_rnn_language_model.py

Four models of bytes, alike but for what mixes positions: rotary attention, a nonlinear recurrence
(ParallelGRU with a diagonal recurrent matrix), a linear one (MinGRU), and attention and ParallelGRU
in turn. They read the same batches of the default model's training text, and are scored on held-out
text, in windows as long as those of training and four times as long. Each model is written when it
is done; a run that was stopped goes on with the next.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.attention import RotaryAttention
from ropewalk.blocks.heads import TiedEmbedding
from ropewalk.blocks.recurrent import MinGRU, ParallelGRU
from ropewalk.blocks.rotary import RotaryEmbedding
from ropewalk.evals.default_model import held_out_documents
from ropewalk.evals.default_model.architecture import to_tokens
from ropewalk.evals.default_model.corpus import TrainingText

RESULTS = Path(__file__).with_suffix(".json")
VOCABULARY = 259
DIM, HEADS, INNER = 128, 4, 320
MIXERS = {
    "attention": ("attention",) * 4,
    "ParallelGRU": ("gru",) * 4,
    "MinGRU": ("mingru",) * 4,
    "both in turn": ("gru", "attention") * 2,
}
STEPS, WARMUP, ROWS, LENGTH, RATE = 800, 40, 16, 256, 2e-3
SCORED_EVERY, SCORED_WINDOWS, LONG = 50, 32, 1024


class Recurrent(nn.Module):
    """A recurrent layer and a projection of its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.output = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.output(states)


def mixer(kind: str) -> nn.Module:
    """What lets positions see those before them, (batch, time, dim) → the same."""
    if kind == "attention":
        return RotaryAttention(DIM, HEADS, rotary=RotaryEmbedding(DIM // HEADS))
    if kind == "gru":
        return Recurrent(ParallelGRU(DIM, DIM, batch_first=True))
    return Recurrent(MinGRU(DIM, DIM))


class Block(nn.Module):
    """A mixer and a gated feed-forward, each on a residual branch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.RMSNorm(DIM), mixer(kind)
        self.norm = nn.RMSNorm(DIM)
        self.up = nn.Linear(DIM, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x))
        gate, value = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * value)


class LanguageModel(nn.Module):
    """Bytes in, logits out; the head is the embedding."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.head = TiedEmbedding(VOCABULARY, DIM)
        self.blocks = nn.ModuleList(Block(kind) for kind in kinds)
        self.norm = nn.RMSNorm(DIM)

    def loss(self, tokens: Tensor) -> Tensor:
        """Of each position but the first, (batch, time − 1)."""
        x = self.head(tokens[:, :-1])
        for block in self.blocks:
            x = block(x)
        logits = self.head.logits(self.norm(x))
        return functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")


def training_batch(text: TrainingText, step: int) -> Tensor:
    """The same rows for every model."""
    generator = np.random.default_rng((7, step))
    rows = [to_tokens(text.window(LENGTH + 1, generator)) for _ in range(ROWS)]
    return torch.from_numpy(np.stack(rows)).long()


def scored_windows() -> Tensor:
    """Held-out text, evenly spread, (windows, LONG + 1)."""
    tokens = [to_tokens(document.text.encode()) for document in held_out_documents()]
    size = LONG + 1
    everything = np.concatenate([each[: len(each) // size * size] for each in tokens])
    windows = torch.from_numpy(everything).view(-1, size).long()
    return windows[torch.linspace(0, len(windows) - 1, SCORED_WINDOWS).long()]


@torch.no_grad()
def score(model: LanguageModel, windows: Tensor) -> Tensor:
    """Mean loss by position, nats per byte."""
    return torch.cat([model.loss(part) for part in windows.split(8)]).mean(0)


def train(
    kinds: tuple[str, ...], text: TrainingText, windows: Tensor, steps: int
) -> dict[str, Any]:
    """Trains one model; its losses against bytes read, and against the position at the end."""
    torch.manual_seed(0)
    model = LanguageModel(kinds)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    curve, seconds = [], 0.0
    for step in range(steps):
        rate = RATE * min((step + 1) / WARMUP, (steps - step) / (steps - WARMUP), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        tokens, started = training_batch(text, step), time.perf_counter()
        model.loss(tokens).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - started
        if (step + 1) % SCORED_EVERY == 0 or step + 1 == steps:
            loss = score(model, windows[:, : LENGTH + 1]).mean().item()
            curve.append([(step + 1) * ROWS * LENGTH, round(loss, 4)])
            sys.stderr.write(f"\r{'+'.join(kinds)}: step {step + 1} of {steps}, loss {loss:.3f} ")
    by_position = score(model, windows).view(-1, 64).mean(1)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve,
        "by_position": [round(loss, 4) for loss in by_position.tolist()],
        "seconds_per_step": round(seconds / steps, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training; fewer to try it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file that is written")
    options = parser.parse_args()
    if options.steps <= WARMUP:
        parser.error(
            f"--steps: expected more than the {WARMUP} of the warm-up, got {options.steps}"
        )
    settings = {
        "steps": options.steps, "rows": ROWS, "length": LENGTH, "dim": DIM, "long": LONG,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    found: dict[str, Any] = {"settings": settings, "models": {}}
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        if earlier["settings"] == settings:
            found = earlier
    text, windows = TrainingText(), scored_windows()
    for name, kinds in MIXERS.items():
        if name in found["models"]:
            continue
        found["models"][name] = train(kinds, text, windows, options.steps)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        sys.stderr.write("\n")


if __name__ == "__main__":
    main()
