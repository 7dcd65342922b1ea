"""A frozen layer in a wrapper, which may hold another weight for a while.

The parameter that was there is set aside, not calculated back. It is what a state dict holds, where
a state dict is loaded into, and what `.to` moves along; what was trainable is so again at the end.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.adapter.merging import (
    Kept,
    after_loading,
    before_loading,
    save_unmerged,
)


class WrappedLayer(nn.Module):
    """What `MonarchAdapter` is apart from its adapters.

    Attributes:
        base_layer: what is wrapped.

    Args:
        layer: to be wrapped.
    """

    base_layer: nn.Module

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = layer
        # While adapters are merged: their names, and the parameter that is there without them. In a
        # tuple, because a module would take a bare parameter for one of its own.
        self._merged: tuple[str, ...] = ()
        self._unmerged: tuple[nn.Parameter, ...] = ()
        # While another state dict is loaded: what to merge then, and what was there.
        self._remerge: tuple[str, ...] = ()
        self._kept: tuple[Kept, ...] = ()
        self._trainable: dict[str, bool] = {}
        self.register_state_dict_post_hook(save_unmerged)
        self.register_load_state_dict_pre_hook(before_loading)
        self.register_load_state_dict_post_hook(after_loading)

    def _freeze(self) -> None:
        """At the end of the constructor, when nothing can be refused any more."""
        self.remember({p for p in self.base_layer.parameters() if p.requires_grad})
        self.base_layer.requires_grad_(False)
        self.train(self.base_layer.training)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        holder: Any = self.base_layer
        return holder.bias

    @property
    def merged(self) -> tuple[str, ...]:
        """The adapters that are part of the layer's weight at this moment."""
        return self._merged

    @property
    def unmerged_weight(self) -> Any:
        """The layer's weight without adapters, merged or not; None if it has none."""
        return self._unmerged[0] if self._unmerged else getattr(self.base_layer, "weight", None)

    def put_merged(self, names: Sequence[str], weight: nn.Parameter | None) -> None:
        """Makes this the layer's weight, as the one with these adapters merged; None: as with none.

        It never fails, so that what is calculated first can be put into many layers at last.
        """
        original = self.unmerged_weight
        self.unmerge()
        if weight is not None:
            holder: Any = self.base_layer
            holder.weight = weight
            self._unmerged, self._merged = (original,), tuple(names)

    def unmerge(self) -> None:
        """Puts back the weight that was there before `merge`, the parameter itself."""
        if not self._unmerged:
            return
        holder: Any = self.base_layer
        holder.weight = self._unmerged[0]
        self._unmerged, self._merged = (), ()

    def without_adapters(self) -> nn.Module:
        """The bare layer, unmerged and as trainable as it was, for whoever takes it out."""
        self.unmerge()
        return self._as_it_was()

    def merged_layer(self) -> nn.Module:
        """The bare layer with what is merged at this moment, for good."""
        self._unmerged, self._merged = (), ()
        return self._as_it_was()

    def _as_it_was(self) -> nn.Module:
        for key, parameter in self.base_layer.named_parameters():
            parameter.requires_grad_(self._trainable.get(key, False))
        return self.base_layer

    def learned(self) -> set[nn.Parameter]:
        """The parameters of the bare layer that were trainable before it was wrapped."""
        named = dict(self.base_layer.named_parameters())
        if self._unmerged:
            named["weight"] = self._unmerged[0]
        return {parameter for key, parameter in named.items() if self._trainable.get(key)}

    def remember(self, learned: set[nn.Parameter]) -> None:
        """Says what was trainable, where another adapter has frozen a shared weight before."""
        named = self.base_layer.named_parameters()
        self._trainable = {key: parameter in learned for key, parameter in named}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to` and its like reach the parameter that is set aside, too."""
        super()._apply(fn, recurse)
        if self._unmerged:
            kept = self._unmerged[0]
            with torch.no_grad():
                moved = fn(kept)
            if moved.is_meta == kept.is_meta:
                kept.data = moved  # the same parameter, which others may hold
            else:
                self._unmerged = (nn.Parameter(moved, requires_grad=kept.requires_grad),)
        return self
