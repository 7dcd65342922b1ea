"""The recipes of the bundled models, as data: what is trained on, how long, at which rate.

A recipe is a list of phases. Sequence length grows from phase to phase at a constant number of
tokens per step; the learning rate is constant and falls linearly to zero over the last part of the
run ("warm-up, stable, decay"), so a run can be judged only at its end.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        until: fraction of all steps at which the phase ends.
        length: tokens per row.
        shares: kind of row → share of the rows.
    """

    until: float
    length: int
    shares: dict[str, float]


SHARES = {"text": 0.75, "copy": 0.1, "pairs": 0.075, "passkey": 0.075}


@dataclass(frozen=True)
class Recipe:
    """How one bundled model is made.

    Attributes:
        name: folder of the model inside the package.
        variant: position variant that is plugged in while training, in the grammar of
            `ropewalk variants`; empty for the plain architecture.
        native_variant: the variant the trained model is meant to be run with.
        seed: decides initial weights and every batch.
        steps: optimiser steps.
        tokens_per_step: tokens in a batch.
        matrix_rate: learning rate of Muon, which trains the matrices of the layers.
        rate: learning rate of AdamW, which trains the embedding and the norms.
        weight_decay: decoupled weight decay of the matrices.
        warmup: steps of linear warm-up.
        decay_from: fraction of the run after which the rate falls to zero.
        synthetic_weight: weight of each synthetic kind's mean loss against the text's.
        phases: see `Phase`.
    """

    name: str
    variant: str = ""
    native_variant: str = "rope"
    seed: int = 0
    steps: int = 3600
    tokens_per_step: int = 4096
    matrix_rate: float = 3e-3
    rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    decay_from: float = 0.5
    synthetic_weight: float = 0.2
    phases: tuple[Phase, ...] = (
        Phase(0.3125, 128, SHARES),
        Phase(0.5, 256, SHARES),
        Phase(1.0, 512, SHARES),
    )

    def phase(self, step: int) -> Phase:
        """The phase that `step` (counted from 0) belongs to."""
        return next(phase for phase in self.phases if step < phase.until * self.steps)

    def rate_factor(self, step: int) -> float:
        """Factor on both learning rates at `step`."""
        decay = (self.steps - step) / (self.steps * (1.0 - self.decay_from))
        return min(1.0, (step + 1) / self.warmup, decay)


PLAIN = Recipe(name="plain")
# Inverse Leaky ReRoPE (kexue.fm/archives/9728) for 8 times the trained length, k = 1/(2·8) and
# w = L/4, with log n scaling from the start; read with plain RoPE and the same log n.
INVERSE_LEAKY = Recipe(
    name="inverse_leaky",
    variant="leaky-rerope:window=128,factor=0.0625+log-n:length=512,clamp=false",
    native_variant="log-n:length=512,clamp=false",
)
RECIPES = {recipe.name: recipe for recipe in (PLAIN, INVERSE_LEAKY)}
