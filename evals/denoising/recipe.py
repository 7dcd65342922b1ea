"""What decides a trained denoiser: data apart, every number of a training is in its recipe."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from ropewalk.evals.errors import InputError

PROCESSES = ("gaussian", "poisson-flow", "cold", "mask", "edit")
DISCRETE = ("mask", "edit")
SCHEDULES = ("rectified-flow", "cosine", "linear-beta", "sigmoid", "karras")
PARAMETRISATIONS = ("flow", "v", "epsilon", "x0", "score", "edm")
DEGRADATIONS = ("blur", "pixelate", "inpaint", "fade")
MIXERS = ("attention", "recurrent", "hybrid")
FEED_FORWARDS = ("swiglu", "monarch", "gelu")
ROTARY = ("axial", "absolute", "none")
ADALN = ("full", "shared", "low_rank")
TIMES = ("logit-normal", "uniform")
PRECISIONS = ("float32", "bfloat16")
CHOICES: dict[str, tuple[str, ...]] = {
    "process": PROCESSES,
    "schedule": SCHEDULES,
    "parametrisation": PARAMETRISATIONS,
    "degradation": DEGRADATIONS,
    "mixer": MIXERS,
    "feed_forward": FEED_FORWARDS,
    "rotary": ROTARY,
    "adaln": ADALN,
    "times": TIMES,
    "precision": PRECISIONS,
}
# Options that some processes have no use for.
READ_BY = {
    "parametrisation": ("gaussian", "poisson-flow"),
    "degradation": ("cold",),
    "dimension": ("poisson-flow",),
}


@dataclass(frozen=True)
class Recipe:
    """A training, but for its data.

    Attributes:
        dim: width of the model.
        depth: number of blocks.
        heads: of attention.
        patch_size: pixels of a patch's side; a discrete process reads single pixels.
        mixer: `attention`, `recurrent` or `hybrid`.
        feed_forward: `swiglu`, `monarch` or `gelu`.
        rotary: how positions are told: `axial`, `absolute` or `none`.
        adaln: `full`, `shared` or `low_rank`.
        registers: learned tokens beside the picture's.
        process: how data becomes noise: `gaussian`, `poisson-flow`, `cold`, `mask` or `edit`.
        schedule: how fast.
        parametrisation: what the model predicts; read by gaussian and poisson-flow only.
        degradation: of the process cold: `blur`, `pixelate`, `inpaint` or `fade`.
        dimension: D of the process poisson-flow.
        steps: optimiser steps.
        batch_size: pictures of a step, over all ranks.
        rate: highest learning rate of AdamW.
        warmup: steps in which the rate rises; it falls as a cosine after that.
        weight_decay: decoupled.
        gradient_norm: longer gradients are scaled down to this length.
        label_drop: share of pictures whose class is withheld, for guidance.
        ema: decay of the averaged weights, which samples are drawn with.
        times: how noise levels are drawn, `logit-normal` or `uniform`.
        precision: of products of matrices; weights and losses are float32 always.
        seed: decides first weights, order of pictures, noise and samples.
    """

    dim: int = 64
    depth: int = 4
    heads: int = 4
    patch_size: int = 2
    mixer: str = "attention"
    feed_forward: str = "swiglu"
    rotary: str = "axial"
    adaln: str = "full"
    registers: int = 0
    process: str = "gaussian"
    schedule: str = "rectified-flow"
    parametrisation: str = "flow"
    degradation: str = "blur"
    dimension: int = 128
    steps: int = 1500
    batch_size: int = 128
    rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    label_drop: float = 0.1
    ema: float = 0.995
    times: str = "logit-normal"
    precision: str = "float32"
    seed: int = 0

    @classmethod
    def asked(cls, **options: Any) -> Self:
        """A recipe from options, of which some may be None: not given.

        Raises:
            InputError: one was given that the process does not read.
        """
        process = options.get("process", cls.process)
        for name, readers in READ_BY.items():
            if options.get(name) is not None and process in PROCESSES and process not in readers:
                raise InputError(
                    f"--{_option(name)} is only read by --process {' or '.join(readers)}, not by "
                    f"{process}; leave it out"
                )
        return cls(**{name: value for name, value in options.items() if value is not None})

    def check(self) -> None:
        """Checks every value by itself.

        Raises:
            InputError: says what was expected, what came and how to mend it.
        """
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"--{_option(name)} expects {', '.join(choices[:-1])} or {choices[-1]}, "
                    f"got {value!r}"
                )
        for name in ("dim", "depth", "heads", "patch_size", "dimension", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{_option(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("registers", "warmup", "seed", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"--{_option(name)} must not be negative, got {getattr(self, name)}"
                )
        for name in ("rate", "gradient_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise InputError(f"--{_option(name)} must be positive, got {getattr(self, name)}")
        for name in ("label_drop", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"--{_option(name)} must be in [0, 1), got {getattr(self, name)}")
        if self.dim % self.heads:
            raise InputError(
                f"--dim {self.dim} is no multiple of --heads {self.heads}; try "
                f"--dim {max(1, round(self.dim / self.heads)) * self.heads}"
            )
        if self.process in DISCRETE and self.patch_size != 1:
            raise InputError(
                f"--process {self.process} predicts single pixels: expected --patch-size 1, "
                f"got {self.patch_size}"
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from 0: a line up, then a cosine down to zero."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        left = (self.steps - step) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1.0 - math.cos(math.pi * left))

    def describe(self) -> dict[str, Any]:
        """All values that the process reads, as they stand in a run's configuration."""
        return {
            name: value
            for name, value in asdict(self).items()
            if self.process in READ_BY.get(name, PROCESSES)
        }


def _option(name: str) -> str:
    return name.replace("_", "-")
