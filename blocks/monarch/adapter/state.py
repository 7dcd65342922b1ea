"""What an adapter has learned, as a state dict: for safetensors, and for models that get it.

    <layer>.right, <layer>.left     the factors
    <layer>.scaling                 0-d float64; without it the factors say half of the function

The adapter's own name is no part of the keys, so that it can be loaded under another one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.adapter.base_layer import features_of
from ropewalk.blocks.monarch.adapter.branch import MonarchBranch
from ropewalk.blocks.monarch.adapter.insertion import insert
from ropewalk.blocks.monarch.adapter.lookup import (
    adapted_layers,
    adapters_of,
    check_model,
    layers_with,
)
from ropewalk.blocks.monarch.adapter.names import check_name
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.monarch import Backend, check_factors

_SCALING = "scaling"


class LoadedAdapter(NamedTuple):
    """What did not fit when an adapter was loaded.

    Attributes:
        missing: keys that the model has and the state dict has not.
        unexpected: keys that the state dict has and the model has not.
    """

    missing: list[str]
    unexpected: list[str]


def adapter_state_dict(model: nn.Module, *, name: str = "default") -> dict[str, Tensor]:
    """The factors and the scaling of one adapter in all layers, and nothing else of the model.

    Args:
        model: with adapters.
        name: of the adapter.

    Returns:
        Detached and contiguous tensors, as `safetensors.torch.save_file` takes them. They share
        memory with the model.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all.
    """
    state: dict[str, Tensor] = {}
    for key, branch in _branches(model, name).items():
        state[f"{key}right"] = branch.right.detach().contiguous()
        state[f"{key}left"] = branch.left.detach().contiguous()
        state[f"{key}{_SCALING}"] = torch.tensor(branch.scaling, dtype=torch.float64)
    return state


def load_adapter_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], *, name: str = "default", strict: bool = True
) -> LoadedAdapter:
    """Gives an adapter of a model, which `add_adapters` has put there, what another has learned.

    Args:
        model: with such an adapter, of the same blocks and rank.
        state: from `adapter_state_dict`. Values are cast to the dtype of the adapter.
        name: of the adapter.
        strict: refuse keys that are missing or unexpected; they are returned in any case.

    Raises:
        KeyError: an adapter that no layer has; with `strict` keys that do not fit.
        ValueError: no adapters at all; shapes or values that do not fit; merged adapters. Nothing
            has been changed then.
        TypeError: not a mapping, or values that are no tensors.
    """
    _check_state(state)
    branches = _branches(model, name)
    for path, layer in adapted_layers(model).items():
        if name in layer.merged:
            raise ValueError(f"{path}: expected {name!r} not to be merged; unmerge() first")
    ours = {f"{key}{part}" for key in branches for part in ("right", "left", _SCALING)}
    missing, unexpected = sorted(ours - state.keys()), sorted(state.keys() - ours)
    if strict and (missing or unexpected):
        raise KeyError(
            f"state: expected the keys of adapter {name!r}; missing: {_listed(missing)}; "
            f"unexpected: {_listed(unexpected)}; add_adapters must match the same layers, or say "
            "strict=False"
        )
    for key, branch in branches.items():
        _check_values(key, state)
        for part, shape in (("right", branch.right.shape), ("left", branch.left.shape)):
            given = state.get(f"{key}{part}")
            if given is not None and given.shape != shape:
                raise ValueError(
                    f"{key}{part}: expected {tuple(shape)}, got {tuple(given.shape)}; add_adapters "
                    f"with the nblocks and rank of what is loaded (this one has nblocks="
                    f"{branch.shape.nblocks}, rank={branch.shape.rank})"
                )
    for key, branch in branches.items():
        _fill(branch, key, state)
    return LoadedAdapter(missing, unexpected)


def attach_adapter(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    name: str = "default",
    dropout: float = 0.0,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
    freeze: bool = True,
) -> list[str]:
    """Gives a model the adapter that a state dict describes, where it has none of that name.

    Layers, blocks, rank and scaling are all read off the state dict. Layers that have adapters
    already get another one, which is not active there yet.

    Args:
        model: the plain model that the adapter was trained on, or one with other adapters.
        state: from `adapter_state_dict`.
        name: of the adapter here.
        dropout: see `MonarchAdapter`.
        backend: see `MonarchAdapter`.
        dtype: see `MonarchAdapter`.
        freeze: all that is not an adapter's, as `add_adapters` does.

    Returns:
        The names of the layers.

    Raises:
        ValueError: layers that the model has not, or that are of another size; keys that are
            missing; values that do not fit; a layer, any, that has an adapter of this name. Nothing
            has been changed then.
        TypeError: an argument of the wrong kind.
    """
    check_model(model)
    check_name(name)
    _check_state(state)
    for path, layer in adapters_of(model):
        if name in layer.adapters:
            raise ValueError(
                f"{path}: name: expected a new one, got {name!r}, which is there already; choose "
                "another one, or load_adapter_state_dict into it"
            )
    # As adapters are named, without the prefix of torch.compile.
    modules = {path.replace("_orig_mod.", ""): each for path, each in model.named_modules()}
    chosen: list[tuple[str, nn.Module, dict[str, Any]]] = []
    for path in dict.fromkeys(key.rpartition(".")[0] for key in state):
        prefix = f"{path}." if path else ""
        parts = [state.get(f"{prefix}{part}") for part in ("right", "left", _SCALING)]
        if any(part is None for part in parts):
            raise ValueError(
                f"state: expected right, left and {_SCALING} of {path!r}, from adapter_state_dict, "
                f"got {[key for key in state if key.rpartition('.')[0] == path]}"
            )
        if path not in modules:
            raise ValueError(
                f"state: expected layers of this {type(model).__name__}, got {path!r}, which it "
                "does not have; take the model that the adapter was trained on"
            )
        _check_values(prefix, state)
        right, left, scaling = (part for part in parts if part is not None)
        try:
            check_factors(right, left)
            features = features_of(modules[path])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error
        blocks = right.shape[0], left.shape[0]
        shape = MonarchShape(*features, *blocks, right.shape[1] // blocks[1])
        if shape.right_shape != right.shape or shape.left_shape != left.shape:
            raise ValueError(
                f"{path}: expected factors {shape.right_shape} and {shape.left_shape} for "
                f"{shape.in_features} to {shape.out_features} features, got {tuple(right.shape)} "
                f"and {tuple(left.shape)}; take the model that the adapter was trained on"
            )
        options = {
            "nblocks": blocks, "rank": shape.rank, "scaling": float(scaling), "dropout": dropout,
            "backend": backend, "dtype": dtype,
        }  # fmt: skip
        chosen.append((path, modules[path], options))
    if not chosen:
        raise ValueError("state: expected the factors of an adapter, got no keys")
    insert(model, chosen, name, freeze=freeze)
    load_adapter_state_dict(model, state, name=name)
    return [path for path, _, _ in chosen]


def _check_state(state: Mapping[str, Tensor]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state: expected what adapter_state_dict returns, got {type(state).__name__}; load a "
            "file with safetensors.torch.load_file"
        )


def _check_values(prefix: str, state: Mapping[str, Tensor]) -> None:
    """Raises unless what a state dict has of a layer are factors and a scaling."""
    for part in ("right", "left", _SCALING):
        key = f"{prefix}{part}"
        if key not in state:
            continue
        given = state[key]
        if not isinstance(given, Tensor):
            raise TypeError(f"{key}: expected a tensor, got {type(given).__name__}")
        if not given.is_floating_point() or given.is_meta:
            raise ValueError(
                f"{key}: expected floating-point values, got {given.dtype} on {given.device}; take "
                "what adapter_state_dict has saved"
            )
        if part == _SCALING and (given.ndim or not bool(given.isfinite())):
            raise ValueError(
                f"{key}: expected one finite number, 0-d, got {_shown(given)}; take what "
                "adapter_state_dict has saved"
            )


def _shown(given: Tensor) -> str:
    return f"the shape {tuple(given.shape)}" if given.ndim else str(given.item())


@torch.no_grad()
def _fill(branch: MonarchBranch, key: str, state: Mapping[str, Tensor]) -> None:
    for part in ("right", "left"):
        parameter: nn.Parameter = getattr(branch, part)
        given = state.get(f"{key}{part}")
        if given is None:
            continue
        if parameter.is_meta:
            # Nothing can be copied into it; the values bring their device with them.
            values = given.detach().to(parameter.dtype, copy=True)
            setattr(branch, part, nn.Parameter(values, requires_grad=parameter.requires_grad))
        else:
            parameter.copy_(given)
    scaling = state.get(f"{key}{_SCALING}")
    if scaling is not None:
        branch.scaling = float(scaling)


def _branches(model: nn.Module, name: str) -> dict[str, MonarchBranch]:
    """The adapter in each layer, by what its keys begin with."""
    having = layers_with(adapted_layers(model), name)
    return {f"{path}." if path else "": layer.branch(name) for path, layer in having.items()}


def _listed(keys: list[str]) -> str:
    shown = ", ".join(keys[:4])
    return f"{shown} and {len(keys) - 4} more" if len(keys) > 4 else shown or "none"
