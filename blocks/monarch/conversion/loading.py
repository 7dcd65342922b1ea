"""A state dict of a converted model, into a model as it is made by its class.

The factors' shapes say the blocks and the rank, and the dense layer that is there says the sizes,
so that nothing else needs to be kept beside the weights.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.conversion.dense import dense_weight, is_transposed, remember_class
from ropewalk.blocks.monarch.conversion.replacement import replace, take_over
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.monarch import Backend
from ropewalk.kernels.monarch.backend import BACKENDS


@torch.no_grad()
def load_monarch_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    strict: bool = True,
    backend: Backend = "auto",
) -> Any:
    """Puts a Monarch layer wherever the state dict has factors, then loads it.

    Args:
        model: as its class makes it, dense. It is changed; not at all if the state dict is refused.
        state_dict: of a model that `monarchize` converted; of a tied tensor one name is enough,
            which is what safetensors' `save_model` and `save_pretrained` leave.
        strict: see `nn.Module.load_state_dict`.
        backend: of the new layers.

    Returns:
        What `nn.Module.load_state_dict` returns.

    Raises:
        ValueError: factors where the model has no dense layer, or one of other sizes.
        RuntimeError: as `nn.Module.load_state_dict`: names or sizes of another model.
    """
    check_backend(backend, BACKENDS)
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    for key, right in state_dict.items():
        name = key.removesuffix(".right")
        left = state_dict.get(f"{name}.left")
        if name == key or not isinstance(left, Tensor) or not isinstance(right, Tensor):
            continue
        module = modules.get(name)
        if isinstance(module, MonarchLinear) or module in replacements:
            continue
        if module is None or not (isinstance(module, nn.Linear) or is_transposed(module)):
            found = "nothing" if module is None else type(module).__name__
            raise ValueError(f"{name}: expected a dense layer in the model, found {found}")
        replacements[module] = _empty(name, module, right, left, backend)
    replace(model, replacements)
    # torch copies all that fits before it says what does not.
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        complete = _with_tied_names(model, state_dict)
        if _may_be_refused(model, complete, strict):
            kept = [(tensor, tensor.clone()) for tensor in _values(model, replacements.values())]
        return model.load_state_dict(complete, strict=strict)
    except BaseException:  # an interrupt, too
        replace(model, {new: old for old, new in replacements.items()})
        for tensor, before in kept:
            tensor.copy_(before)
        raise


def _may_be_refused(model: nn.Module, state_dict: Mapping[str, Any], strict: bool) -> bool:
    """Whether names or sizes differ. A module's own way of loading may still make up for it."""
    expected = model.state_dict()
    if strict and expected.keys() != state_dict.keys():
        return True
    return any(
        getattr(value, "shape", None) != getattr(state_dict[name], "shape", None)
        for name, value in expected.items()
        if name in state_dict
    )


def _values(model: nn.Module, new: Iterable[nn.Module]) -> list[Tensor]:
    """All tensors of a model that have values, but for the factors of new layers."""
    without = {id(layer._parameters[name]) for layer in new for name in ("right", "left")}
    return [
        tensor
        for tensor in chain(model.parameters(), model.buffers())
        if id(tensor) not in without and not nn.parameter.is_lazy(tensor)
    ]


def _with_tied_names(model: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """A missing name of a tensor that is there under another, as savers leave all but one out."""
    present: dict[int, str] = {}
    missing: dict[str, int] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in state_dict:
            missing[name] = id(tensor)
        elif isinstance(tensor, Tensor):
            present.setdefault(id(tensor), name)
    tied = {name: state_dict[present[key]] for name, key in missing.items() if key in present}
    if not tied:
        return state_dict
    complete = _StateDict({**state_dict, **tied})
    complete._metadata = getattr(state_dict, "_metadata", None)  # versions of modules
    return complete


class _StateDict(dict[str, Any]):
    """With what torch hangs on it."""

    _metadata: Any = None


# A parameter made in inference mode could never be trained.
@torch.inference_mode(False)
def _empty(
    name: str, module: nn.Module, right: Tensor, left: Tensor, backend: Backend
) -> MonarchLinear:
    """A layer for these factors with memory like the dense one's, and no values."""
    weight = dense_weight(module)
    out_features, in_features = weight.shape
    fits = right.ndim == left.ndim == 3
    shape = None
    if fits:
        outputs = len(left)
        rank = right.shape[1] // outputs
        shape = MonarchShape(in_features, out_features, len(right), outputs, rank)
        fits = (shape.right_shape, shape.left_shape) == (tuple(right.shape), tuple(left.shape))
    if not fits or shape is None:
        raise ValueError(
            f"{name}: expected factors of a layer of {in_features} to {out_features} features, got "
            f"{tuple(right.shape)} and {tuple(left.shape)}"
        )
    factors = (
        torch.empty(size, dtype=weight.dtype, device=weight.device)
        for size in (shape.right_shape, shape.left_shape)
    )
    layer = MonarchLinear.from_factors(*factors, shape=shape, backend=backend)
    layer.right.requires_grad_(weight.requires_grad)
    layer.left.requires_grad_(weight.requires_grad)
    remember_class(layer, module)
    take_over(layer, module)
    return layer
