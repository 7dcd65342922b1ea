"""Weights of others: the published DiT's state dict, and diffusers' `DiTTransformer2DModel`.

Both are the model of `presets.PUBLISHED`. A state dict says everything but the number of heads,
which the published sizes have. Diffusers' model embeds time and class once in each block (all alike
after its own conversion, and then one embedding serves all here), and spreads the frequencies of
the time a little wider.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.denoiser.layout import TokenLayout
from ropewalk.blocks.denoiser.model import DiffusionTransformer
from ropewalk.blocks.denoiser.options import Options
from ropewalk.blocks.denoiser.positions import absolute_positions
from ropewalk.blocks.denoiser.presets import PUBLISHED, WIDTHS

_DIT = {
    "x_embedder.proj": "embedding",
    "t_embedder.mlp.0": "conditioning.0.time.0",
    "t_embedder.mlp.2": "conditioning.0.time.2",
    "y_embedder.embedding_table": "conditioning.0.classes",
    "final_layer.linear": "head",
    "final_layer.adaLN_modulation.1": "final_modulation",
}
_DIT_BLOCK = {
    "attn.qkv": "mixer.qkv",
    "attn.proj": "mixer.output",
    "mlp.fc1": "feed_forward.input",
    "mlp.fc2": "feed_forward.output",
    "adaLN_modulation.1": "modulation",
}
_POSITIONS = "pos_embed"


def from_dit(
    state_dict: Mapping[str, Tensor], *, heads: int | None = None, input_size: int | None = None
) -> DiffusionTransformer:
    """The published DiT with weights in its own layout.

    Args:
        state_dict: as in the published checkpoints; it is left as it is, and copied.
        heads: of attention; those of the published model of this width if None.
        input_size: height and width of the latent image; found from the positions if None.

    Returns:
        A model in evaluation mode, in the dtype and on the device of the weights. Its times are
        (k + 1)/1000 for step k, its schedule is `Tabulated.linear_beta()`, its parametrisation
        epsilon.

    Raises:
        ValueError: names that are missing or of no use, shapes of another model, a width of which
            the number of heads is not known, positions that are not DiT's.
        TypeError: not a mapping of tensors.

    Example:
        >>> model = from_dit(safetensors.torch.load_file("DiT-XL-2-256x256.safetensors"))
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict: expected names and tensors, got {type(state_dict).__name__}; pass "
            "model.state_dict(), or what safetensors.torch.load_file gives"
        )
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"state_dict: expected names and tensors, got {type(tensor).__name__} for "
                f"{name!r}; of a checkpoint with several state dicts pass one of them"
            )
    weights = {name: tensor for name, tensor in state_dict.items() if name != _POSITIONS}
    first = _needed(weights, "x_embedder.proj.weight")
    table = _needed(weights, "y_embedder.embedding_table.weight")
    last = _needed(weights, "final_layer.linear.weight")
    if first.ndim != 4 or first.shape[2] != first.shape[3]:
        raise ValueError(
            f"x_embedder.proj.weight: expected (dim, channels, patch, patch), got "
            f"{tuple(first.shape)}"
        )
    dim, channels, patch, _ = first.shape
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    if blocks != set(map(str, range(len(blocks)))) or not blocks:
        raise ValueError(f"state_dict: expected blocks 0 … n − 1, got {sorted(blocks)}")
    hidden = _needed(weights, "blocks.0.mlp.fc1.weight").shape[0]
    model = DiffusionTransformer(
        _size(state_dict, patch, input_size),
        patch,
        channels,
        dim,
        len(blocks),
        _heads(dim, heads),
        **_published(
            num_classes=table.shape[0] - 1,
            learn_sigma=last.shape[0] == 2 * channels * patch * patch,
            feed_forward_width=hidden,
            device=first.device,
            dtype=first.dtype,
        ),
    )
    if _POSITIONS in state_dict:
        _check_positions(model, state_dict[_POSITIONS])
    renamed = {_dit_name(name): tensor for name, tensor in weights.items()}
    renamed["embedding.weight"] = first.flatten(1)
    return _loaded(model, renamed, "state_dict")


def from_diffusers(model: nn.Module) -> DiffusionTransformer:
    """A copy of diffusers' `DiTTransformer2DModel`.

    Args:
        model: the transformer itself, `pipeline.transformer`.

    Returns:
        A model that gives equal outputs, in evaluation mode, in its dtype and on its device.
        Diffusers' step k is time (k + 1)/n with n the model's number of steps.

    Raises:
        TypeError: another model.
        ValueError: options of it that no published DiT has.

    Example:
        >>> ours = from_diffusers(DiTPipeline.from_pretrained("facebook/DiT-XL-2-256").transformer)
    """
    if type(model).__name__ != "DiTTransformer2DModel":
        raise TypeError(
            f"model: expected diffusers' DiTTransformer2DModel, got {type(model).__name__}; of a "
            "pipeline, pass pipeline.transformer"
        )
    config: Any = model.config
    feed_forward = {"gelu-approximate": "gelu", "gelu": "gelu_exact"}.get(config.activation_fn)
    if feed_forward is None or config.norm_elementwise_affine or not config.attention_bias:
        raise ValueError(
            "model: expected a GELU feed-forward, norms without weights and attention with biases, "
            f"as published, got activation_fn={config.activation_fn!r}, norm_elementwise_affine="
            f"{config.norm_elementwise_affine} and attention_bias={config.attention_bias}"
        )
    state = model.state_dict()
    channels = config.in_channels
    out_channels = config.out_channels or channels
    depth = config.num_layers
    table = state["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    shared = _same_embeddings(state, depth)
    dim = config.num_attention_heads * config.attention_head_dim
    ours = DiffusionTransformer(
        config.sample_size,
        config.patch_size,
        channels,
        dim,
        depth,
        config.num_attention_heads,
        **_published(
            num_classes=table.shape[0] - 1,
            learn_sigma=False,
            out_channels=out_channels,
            feed_forward=feed_forward,
            feed_forward_width=state["transformer_blocks.0.ff.net.0.proj.weight"].shape[0],
            norm_eps=(1e-6, config.norm_eps),
            time_steps=1000,
            time_frequency_shift=1,
            embed_condition_per_block=not shared,
            device=table.device,
            dtype=table.dtype,
        ),
    )
    renamed: dict[str, Tensor] = {
        "embedding.weight": state["pos_embed.proj.weight"].flatten(1),
        "embedding.bias": state["pos_embed.proj.bias"],
    }
    for kind in ("weight", "bias"):
        renamed[f"final_modulation.{kind}"] = state[f"proj_out_1.{kind}"]
        renamed[f"head.{kind}"] = state[f"proj_out_2.{kind}"]
        for i in range(depth):
            _copy_block(renamed, state, i, kind, embed=i == 0 or not shared)
    return _loaded(ours, renamed, "model")


def _copy_block(
    renamed: dict[str, Tensor], state: Mapping[str, Tensor], i: int, kind: str, *, embed: bool
) -> None:
    theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
    attention = [state[f"{theirs}.attn1.to_{part}.{kind}"] for part in "qkv"]
    renamed[f"{ours}.mixer.qkv.{kind}"] = torch.cat(attention)
    renamed[f"{ours}.mixer.output.{kind}"] = state[f"{theirs}.attn1.to_out.0.{kind}"]
    renamed[f"{ours}.feed_forward.input.{kind}"] = state[f"{theirs}.ff.net.0.proj.{kind}"]
    renamed[f"{ours}.feed_forward.output.{kind}"] = state[f"{theirs}.ff.net.2.{kind}"]
    renamed[f"{ours}.modulation.{kind}"] = state[f"{theirs}.norm1.linear.{kind}"]
    if not embed:
        return
    embedder = f"{theirs}.norm1.emb"
    for layer, number in (("linear_1", 0), ("linear_2", 2)):
        found = state[f"{embedder}.timestep_embedder.{layer}.{kind}"]
        renamed[f"conditioning.{i}.time.{number}.{kind}"] = found
    if kind == "weight":
        table = state[f"{embedder}.class_embedder.embedding_table.weight"]
        renamed[f"conditioning.{i}.classes.weight"] = table


def _same_embeddings(state: Mapping[str, Tensor], depth: int) -> bool:
    """Whether all blocks embed time and class alike."""
    marker = "transformer_blocks.0.norm1.emb."
    names = [name for name in state if name.startswith(marker)]
    return all(
        torch.equal(state[name], state[name.replace(".0.", f".{i}.", 1)])
        for name in names
        for i in range(1, depth)
    )


def _published(**changes: Any) -> Options:
    return PUBLISHED | changes  # pyright: ignore[reportReturnType]


def _dit_name(name: str) -> str:
    """The name here of a tensor there."""
    module, _, kind = name.rpartition(".")
    if module in _DIT:
        return f"{_DIT[module]}.{kind}"
    if module.startswith("blocks."):
        _, number, part = module.split(".", 2)
        if part in _DIT_BLOCK:
            return f"blocks.{number}.{_DIT_BLOCK[part]}.{kind}"
    return name


def _needed(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        found = ", ".join(list(weights)[:5])
        raise ValueError(
            f"state_dict: expected the published DiT's names, such as {name}, got {found} …; "
            "weights of diffusers go through from_diffusers(model), those of a "
            "DiffusionTransformer through load_state_dict"
        )
    return weights[name]


def _heads(dim: int, heads: int | None) -> int:
    known = {width.dim: width.heads for width in WIDTHS.values()}
    if heads is None and dim not in known:
        raise ValueError(
            f"heads: expected the number of attention heads, which a state dict does not say, for "
            f"a width of {dim}; known are those of {', '.join(map(str, known))}"
        )
    return known[dim] if heads is None else heads


def _size(state_dict: Mapping[str, Tensor], patch: int, given: int | None) -> int:
    if given is not None:
        return given
    if _POSITIONS not in state_dict:
        raise ValueError(
            "input_size: expected the height of the latent image, because the state dict has no "
            f"{_POSITIONS} to tell it"
        )
    table = state_dict[_POSITIONS]
    if table.ndim != 3:
        raise ValueError(f"{_POSITIONS}: expected (1, tokens, dim), got {tuple(table.shape)}")
    return round(table.shape[1] ** 0.5) * patch


def _check_positions(model: DiffusionTransformer, table: Tensor) -> None:
    """Refuses positions that are not the sines and cosines that the model computes."""
    grid = tuple(n // p for n, p in zip(model.input_size, model.patch_size, strict=True))
    layout = TokenLayout.of([grid], 0, packed=False, device=torch.device("cpu"))
    computed = absolute_positions(layout.coordinates(torch.device("cpu")), model.dim)
    found = table.detach().to("cpu", torch.float32)
    if found.shape != (1, *computed.shape) or not torch.allclose(found[0], computed, atol=5e-3):
        raise ValueError(
            f"{_POSITIONS}: expected DiT's fixed sines and cosines for a grid of {grid}, "
            f"{(1, *computed.shape)}, got other values of shape {tuple(table.shape)}; learned "
            "positions have no place in this model"
        )


def _loaded(
    model: DiffusionTransformer, weights: Mapping[str, Tensor], name: str
) -> DiffusionTransformer:
    """The model with exactly these weights."""
    own = model.state_dict()
    missing, unknown = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    if missing or unknown:
        raise ValueError(
            f"{name}: expected the published DiT's weights, got none for {missing[:3]} and did not "
            f"expect {unknown[:3]}"
        )
    for key, tensor in weights.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{name}: expected {tuple(own[key].shape)} for {key}, got {tuple(tensor.shape)}; "
                "the weights are of another model"
            )
    model.load_state_dict(dict(weights))
    return model.eval()
