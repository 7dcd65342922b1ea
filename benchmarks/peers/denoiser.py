"""Who denoises.

auto             `ropewalk.blocks.denoiser`, DiT's own options and the weights of `dit`
auto-compiled    the same through torch.compile, as one graph
dit              facebookresearch/DiT's form in ordinary torch (dit.py)
dit-compiled     the same through torch.compile, as one graph
diffusers        its DiTTransformer2DModel, where installed
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Unavailable
from benchmarks.denoiser import Denoiser, ModelWorkload
from ropewalk.blocks.denoiser import DiffusionTransformer, from_dit

COMPILED = "-compiled"


def build(name: str, workload: ModelWorkload) -> Denoiser:
    """What a peer computes.

    Raises:
        Unavailable: it cannot take part.
        KeyError: there is no such peer.
    """
    makers: dict[str, Callable[[ModelWorkload, bool], Denoiser]] = {
        "auto": _ours,
        "dit": _dit,
        "diffusers": _diffusers,
    }
    return makers[name.removesuffix(COMPILED)](workload, name.endswith(COMPILED))


def _called(model: nn.Module, compiled: bool) -> Callable[..., Any]:
    return torch.compile(model, dynamic=False, fullgraph=True) if compiled else model


def _dit(workload: ModelWorkload, compiled: bool) -> Denoiser:
    w, call = workload, _called(workload.dit, compiled)
    parameters = list(w.dit.parameters())
    return Denoiser(lambda: call(w.x, w.steps, w.classes), parameters, w.expected)


def _ours(workload: ModelWorkload, compiled: bool) -> Denoiser:
    w = workload
    model = _as_ours(w, w.dit.state_dict()).requires_grad_(w.shape.backward)
    call, times = _called(model, compiled), (w.steps.float() + 1) / 1000

    def expected() -> list[Tensor]:
        output, *gradients = w.expected()
        if not gradients:
            return [output]
        names = [name for name, _ in w.dit.named_parameters()]
        # Gradients are laid out as weights are, so that what reads those puts these in our order.
        ours = _as_ours(w, dict(zip(names, gradients, strict=True)))
        return [output, *(gradient.detach() for gradient in ours.parameters())]

    return Denoiser(lambda: call(w.x, times, w.classes), list(model.parameters()), expected)


def _as_ours(workload: ModelWorkload, state: dict[str, Tensor]) -> DiffusionTransformer:
    return from_dit(state, heads=workload.shape.heads, input_size=workload.shape.side)


def _diffusers(workload: ModelWorkload, compiled: bool) -> Denoiser:
    w, s = workload, workload.shape
    if importlib.util.find_spec("diffusers") is None:
        raise Unavailable("diffusers is not installed")
    try:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    except (ImportError, RuntimeError) as error:  # of other versions of what it needs
        raise Unavailable(f"diffusers cannot be imported: {error}") from None
    with torch.device(s.device):
        model = DiTTransformer2DModel(
            num_attention_heads=s.heads,
            attention_head_dim=s.dim // s.heads,
            in_channels=s.channels,
            out_channels=2 * s.channels,
            num_layers=s.depth,
            sample_size=s.side,
            patch_size=s.patch,
            num_embeds_ada_norm=s.classes,
        )
    w.draw(model)
    # Its own `to` warns of layers that it would keep in float32, and has none.
    nn.Module.to(model, s.dtype)
    call = _called(model, compiled)

    def forward(called: Callable[..., Any], x: Tensor, steps: Tensor, classes: Tensor) -> Tensor:
        return called(x, timestep=steps, class_labels=classes, return_dict=False)[0]

    return Denoiser(
        lambda: forward(call, w.x, w.steps, w.classes),
        list(model.parameters()),
        lambda: w.exact(model, forward),
    )
