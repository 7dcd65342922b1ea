"""Why a layer stays dense.

A layer is replaced only where its product is all that anybody uses of it. What reads the weight by
itself, keeps it elsewhere too, or computes it from something else, would go on with a weight that
is no longer there, or with another one. Each such case is one reason in the report.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.monarch.conversion.dense import is_transposed
from ropewalk.blocks.monarch.conversion.matching import WRAPPED, Found
from ropewalk.blocks.monarch.conversion.memory import SharedMemory
from ropewalk.blocks.monarch.linear import MonarchLinear

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def check_model(model: nn.Module) -> None:
    """Refuses what is no module, or one whose layers cannot be replaced.

    Raises:
        TypeError: such a one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected a model in Python, got {type(model).__name__}, whose calls are "
            "compiled already; convert before torch.jit.script or torch.jit.trace"
        )


class Surroundings:
    """What the rest of a model does with a layer: who is above it, and who shares its weight."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[nn.Module, str] = {}
        self._above: dict[nn.Module, list[nn.Module]] = {}
        self._memory = SharedMemory()
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, module in modules.items():
            self._names.setdefault(module, name)
            parts = name.split(".") if name else []
            above = [modules[".".join(parts[:end])] for end in range(len(parts))]
            self._above.setdefault(module, []).extend(above)
        for module in self._names:
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._memory.add(parameter, module)

    def above(self, module: nn.Module) -> list[nn.Module]:
        """The modules that a module is inside of, from the model down."""
        return self._above[module]

    def others_with(self, weight: Tensor, module: nn.Module) -> tuple[list[str], bool]:
        """Names of the other modules that hold this weight or some of it; whether all hold all."""
        holders = self._memory.holders(weight)
        whole = all(holders.values())
        names = {holder: self._names[holder] or "the model itself" for holder in holders}
        return [name for holder, name in names.items() if holder is not module], whole


def obstacle(found: Found, around: Surroundings) -> str | None:
    """Why this cannot be converted; None if it can."""
    module = found.module
    for each in (*around.above(module), module):
        if isinstance(each, torch.jit.ScriptModule):
            part = "is" if each is module else "is inside"
            return f"{part} a {type(each).__name__}; convert before torch.jit.script"
    if found.parameter is not None:
        what = f"a parameter of {type(module).__name__}"
        return f"{what}, which is no linear layer; only nn.Linear and Conv1D are converted"
    if isinstance(module, MonarchLinear):
        return "is a MonarchLinear already"
    return (
        _wrapped(module)
        or inside(around.above(module))
        or _computed(module)
        or _weight(module, around)
        or _other_class(module)
        or attached(module, {"weight", "bias"})
    )


def _wrapped(module: nn.Module) -> str | None:
    for name in WRAPPED:
        if name in module._modules:
            return f"{type(module).__name__} wraps a layer ({name}); {_without_adapter(module)}"
    return None


def inside(ancestors: list[nn.Module]) -> str | None:
    """What is above a layer and does more with it than call it, if there is such."""
    for ancestor in ancestors:
        kind = type(ancestor).__name__
        if isinstance(ancestor, nn.MultiheadAttention):
            return f"is inside {kind}, which reads its weight and never calls it"
        if kind in ("FullyShardedDataParallel", "DistributedDataParallel"):
            return f"is inside {kind}, which holds its parameters; convert before wrapping"
        if any(name in ancestor._modules for name in WRAPPED):
            return f"is inside {kind}, which reads its weight; {_without_adapter(ancestor)}"
    return None


def _without_adapter(wrapper: nn.Module) -> str:
    """How an adapter is got rid of."""
    what = "merge or unload the adapter first"
    if type(wrapper).__name__ == "MonarchAdapter":
        return f"{what}: merge_adapters(model) or remove_adapters(model)"
    if hasattr(wrapper, "get_base_layer"):  # of peft
        return f"{what}: model.merge_and_unload()"
    return what


def _computed(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        return (
            "its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations first"
        )
    weight = module._parameters.get("weight")
    if weight is not None:
        return None
    if callable(getattr(module, "weight", None)):
        return f"its weight is quantised ({type(module).__module__}.{type(module).__name__})"
    if isinstance(module, nn.Linear):
        return "its weight is no parameter but computed, as by weight_norm, or a shard's view"
    return f"{type(module).__name__} has no weight of its own"


def _weight(module: nn.Module, around: Surroundings) -> str | None:
    weight: Any = module._parameters["weight"]
    if nn.parameter.is_lazy(weight):
        return "its weight has no size yet; run the model once"
    if is_sharded(weight):
        return "its weight is sharded (DTensor); convert before fully_shard"
    dtype = weight.dtype
    floating = dtype.is_floating_point and torch.finfo(dtype).bits >= 16
    # Quantisation libraries mark weights by a class or an integer dtype.
    if (
        type(weight) is not nn.Parameter
        or type(weight.data) is not Tensor
        or not (floating or dtype.is_complex)
    ):
        return f"its weight is quantised ({type(weight.data).__name__} of {dtype}); dequantise it"
    if dtype.is_complex:
        return f"its weight is complex ({dtype})"
    if weight.is_meta:
        return "its weight is on the meta device, without values; load it first"
    if weight.ndim != 2 or not weight.numel():
        return f"its weight is {tuple(weight.shape)}, no matrix"
    others, whole = around.others_with(weight, module)
    if others:
        part = "" if whole else " or a part of it"
        return f"its weight{part} is also that of {', '.join(others)}"
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "its weight has hooks, which would be lost"
    return None


def _other_class(module: nn.Module) -> str | None:
    if is_transposed(module):
        return None
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__} is no nn.Linear"
    if type(module).forward is not nn.Linear.forward:
        return f"{type(module).__name__} has a forward of its own"
    return None


def attached(module: nn.Module, own: set[str]) -> str | None:
    """What hangs on a layer that another could not take over; its `own` are its parameters."""
    if "forward" in vars(module) or hasattr(module, "_hf_hook"):
        return "its forward was replaced, as accelerate does to move weights"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "was compiled by itself; convert first"
    more = [*(module._parameters.keys() - own), *module._buffers, *module._modules]
    if more:
        return f"holds more than {', '.join(sorted(own))}: {', '.join(sorted(more))}"
    if any(getattr(module, name, None) for name in _STATE_HOOKS):
        return "has hooks on its state dict, which would not find its weight"
    return None
