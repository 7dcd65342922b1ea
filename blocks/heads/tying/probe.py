"""Running a model on a few tokens: what it does to its logits after the head, and its loss.

The head is made to return logits of ours, from −40 to 40, and the model's output shows what became
of them. Nothing of the model's behaviour is assumed from its class or its configuration, which only
give the numbers to try: a scale (Cohere, Granite, Falcon-H1) and a soft cap (Gemma 2, 3).
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.heads.tying.parts import same
from ropewalk.kernels.autocast import suspended

_TOKENS = 6


def after_head(model: Any, head: nn.Module) -> tuple[float, float | None]:
    """The scale and soft cap that a model applies to what its head returns.

    Raises:
        ValueError: it does something else, or cannot be run on tokens alone; says what to do.
    """
    with evaluated(model):
        seen: list[Tensor] = []

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            ramp = torch.linspace(-40, 40, output.numel(), device=output.device)
            seen.append(ramp.view_as(output).to(output.dtype))
            return seen[-1]

        handle = head.register_forward_hook(replace)
        try:
            output = getattr(run(model), "logits", None)
        finally:
            handle.remove()
    name = type(model).__name__
    if len(seen) != 1 or not isinstance(output, Tensor):
        raise ValueError(
            f"{name}: expected one call of the head in a call of the model, and logits, got "
            f"{len(seen)} and {type(output).__name__}; call embedding.loss by hand instead of "
            "fused_loss=True"
        )
    for scale, softcap in itertools.product(*_candidates(model)):
        logits = seen[0] * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if same(output.to(logits.dtype), logits):
            return scale, softcap
    raise ValueError(
        f"{name}: expected logits that are the head's output, scaled or soft-capped by what its "
        "configuration says (logit_scale, logits_scaling, lm_head_multiplier, "
        "final_logit_softcapping), but it does something else to them; tie without fused_loss, "
        "and call linear_cross_entropy on its hidden states with what it does"
    )


def _candidates(model: Any) -> tuple[list[float], list[float | None]]:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def number(name: str) -> float | None:
        value = getattr(text, name, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
            return None
        return float(value)

    scales = [1.0]
    for name in ("logit_scale", "lm_head_multiplier"):
        scales += [x for x in (number(name),) if x is not None]
    divisor = number("logits_scaling")
    if divisor is not None:
        scales.append(1 / divisor)
    softcap = number("final_logit_softcapping")
    return scales, [None] if softcap is None else [None, softcap]


def run(model: Any, labels: Tensor | None = None) -> Any:
    """The model's output for a few tokens.

    Raises:
        ValueError: it cannot be run on tokens alone.
    """
    ids = probe_tokens(model)
    try:
        return model(input_ids=ids) if labels is None else model(input_ids=ids, labels=labels)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__}: expected a model that runs on input_ids, to try out what "
            f"it does to its logits, but it raised {type(error).__name__}: {error}; call "
            "embedding.loss by hand instead of fused_loss=True"
        ) from error


def probe_tokens(model: Any) -> Tensor:
    """The first tokens of the vocabulary."""
    weight = model.get_input_embeddings().weight
    return (torch.arange(_TOKENS, device=weight.device) % len(weight))[None]


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation, without gradients and autocast; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    asking: Any = model
    model.eval()
    try:
        # Under autocast a model rounds its logits where it was not asked what it does to them.
        with torch.no_grad(), suspended(asking.get_input_embeddings().weight):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
