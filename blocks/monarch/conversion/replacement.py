"""Putting layers into a model: all of them or, whatever happens, none.

A new layer takes over what hangs on the old one: mode, hooks (their handles still remove them),
the bias itself, and attributes that somebody set on it.
"""

from collections.abc import Mapping

from torch import nn

# Of torch's hooks those that see what goes in and out, which stays what it was.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
# What a layer knows of itself: of a MonarchLinear and of a Conv1D. All else somebody else has set.
_OWN = {"shape", "backend", "relative_error", "merges_into", "nf", "nx"}


def take_over(new: nn.Module, old: nn.Module) -> None:
    """Hangs on a new layer what hangs on the old one, which keeps it too."""
    new.train(old.training)
    for name in _HOOKS:
        # The very dictionary: handles of hooks refer to it.
        object.__setattr__(new, name, getattr(old, name))
    bias = old._parameters.get("bias")
    if bias is not None:
        new.register_parameter("bias", bias)
    for name, value in vars(old).items():
        if name not in vars(new) and name not in _OWN:
            object.__setattr__(new, name, value)


def replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each new layer everywhere that the old one is, or leaves the model as it was."""
    places = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent._modules.items()
        if child is not None and child in replacements
    ]
    try:
        for parent, name, child in places:
            parent._modules[name] = replacements[child]
    except BaseException:  # an interrupt, too
        for parent, name, child in places:
            parent._modules[name] = child
        raise
