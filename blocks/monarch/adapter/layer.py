"""`MonarchAdapter`: a frozen linear layer, and small Monarch matrices that learn beside it.

    y = W x + b + Σ over active adapters  weight · scaling · L P R dropout(x)

With b blocks on either side and slices of rank r an adapter has r·b·(in + out) parameters, as many
as LoRA's of rank r·b, and adds a matrix of rank up to r·b², because every slice of the weight gets
a rank of its own. It starts with no effect at all.

Merging adds the active adapters to the weight, in float32 and rounded once, so that the layer costs
what it did before. The weight that was there is kept, not subtracted back out of the sum, which in
bfloat16 would not find it again: `unmerge` gives back the very parameter, bit for bit, for one
weight of memory while merged.

Sources: Tan et al. 2024, arXiv 2408.17383 (Monarch adapters, MoRe); Dao et al., arXiv 2204.00595;
Hu et al. 2021, arXiv 2106.09685 §4.1 (a branch that starts at zero, and merging).
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.monarch.adapter.base_layer import features_of, place_of
from ropewalk.blocks.monarch.adapter.branch import MonarchBranch
from ropewalk.blocks.monarch.adapter.merging import (
    after_loading,
    before_loading,
    merged_weight,
    save_unmerged,
)
from ropewalk.blocks.monarch.adapter.names import Active, as_weights, check_name
from ropewalk.blocks.monarch.shape import Blocks
from ropewalk.kernels.monarch import Backend


class MonarchAdapter(nn.Module):
    """Adapters of one linear layer.

    Any number of adapters, of which any may be active. The layer's own parameters are frozen while
    it is wrapped. A state dict taken while adapters are merged holds the weight without them.

    Example:
        >>> layer = MonarchAdapter(nn.Linear(64, 64), nblocks=4, name="maths")
        >>> layer.add("poetry", nblocks=4, rank=2)
        >>> layer.activate({"maths": 1.0, "poetry": 0.5})
        >>> layer.merge()

    Attributes:
        base_layer: what is wrapped.
        adapters: `MonarchBranch` by name.

    Args:
        linear: `nn.Linear`, GPT-2's `Conv1D`, or another layer with `in_features` and
            `out_features`, such as a quantised one, into which nothing can be merged then.
        nblocks: (input blocks, output blocks) of the first adapter, or a number for both. Sides
            that they do not divide are filled up with zeros.
        rank: of each slice of the weight; None as in `MonarchShape.of`, usually a lot.
        scaling: factor on the adapter.
        dropout: on the adapter's input, in training.
        name: of the first adapter, which is active.
        backend: see `ropewalk.kernels.monarch.monarch_matmul`.
        dtype: of the adapter; by default the layer's, or torch's default beside a quantised one.
            float32 on a half-precision layer keeps small steps that would be rounded away.

    Raises:
        ValueError: numbers out of their range, a name with a dot, a layer that is never called.
        TypeError: no linear layer, or an argument of the wrong kind.
    """

    base_layer: nn.Module

    def __init__(
        self,
        linear: nn.Module,
        *,
        nblocks: Blocks = 4,
        rank: int | None = 1,
        scaling: float = 1.0,
        dropout: float = 0.0,
        name: str = "default",
        backend: Backend = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(linear, MonarchAdapter):
            raise ValueError(
                "linear: expected a layer without adapters, got a MonarchAdapter; give it another "
                f"adapter with .add({name!r})"
            )
        self.in_features, self.out_features = features_of(linear)
        self.base_layer = linear
        self.adapters = nn.ModuleDict()
        # What `activate` was told: the weight of each adapter that counts.
        self._active: dict[str, float] = {}
        # While adapters are merged: their names, and the parameter that is there without them. In a
        # tuple, because a module would take a bare parameter for one of its own.
        self._merged: tuple[str, ...] = ()
        self._unmerged: tuple[nn.Parameter, ...] = ()
        self._remerge: tuple[str, ...] = ()
        self.add(
            name, nblocks=nblocks, rank=rank, scaling=scaling, dropout=dropout, backend=backend,
            dtype=dtype,
        )  # fmt: skip
        self._active = {name: 1.0}
        self._trainable = {key: p.requires_grad for key, p in linear.named_parameters()}
        linear.requires_grad_(False)
        self.train(linear.training)
        self.register_state_dict_post_hook(save_unmerged)
        self.register_load_state_dict_pre_hook(before_loading)
        self.register_load_state_dict_post_hook(after_loading)

    @property
    def weight(self) -> Tensor:
        """The weight of the layer, for models that ask for its dtype or device."""
        holder: Any = self.base_layer
        return holder.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        holder: Any = self.base_layer
        return holder.bias

    @property
    def active(self) -> dict[str, float]:
        """The adapters that count, and with which weight."""
        return dict(self._active)

    @property
    def merged(self) -> tuple[str, ...]:
        """The adapters that are part of the layer's weight at this moment."""
        return self._merged

    @property
    def unmerged_weight(self) -> Any:
        """The layer's weight without adapters, merged or not; None if it has none."""
        return self._unmerged[0] if self._unmerged else getattr(self.base_layer, "weight", None)

    def branch(self, name: str) -> MonarchBranch:
        """An adapter by name.

        Raises:
            KeyError: there is none of this name.
        """
        if name not in self.adapters:
            raise KeyError(f"name: expected one of {', '.join(self.adapters)}, got {name!r}")
        return cast("MonarchBranch", self.adapters[name])

    @torch.inference_mode(False)  # under which an adapter could never be trained
    def add(
        self,
        name: str,
        *,
        nblocks: Blocks = 4,
        rank: int | None = 1,
        scaling: float = 1.0,
        dropout: float = 0.0,
        backend: Backend = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Another adapter, which is not active yet. Arguments and errors as of `MonarchAdapter`.

        Raises:
            ValueError: also a name that is taken.
        """
        self._check_new(name)
        device, own = place_of(self.base_layer)
        branch = MonarchBranch(
            self.in_features, self.out_features, nblocks=nblocks, rank=rank, scaling=scaling,
            dropout=dropout, backend=backend, device=device, dtype=dtype or own,
        )  # fmt: skip
        self.adapters[name] = branch.train(self.training)

    def _check_new(self, name: str) -> None:
        check_name(name)
        if name in self.adapters:
            raise ValueError(
                f"name: expected a new one, got {name!r}, which is there already; delete or rename "
                "it first"
            )

    def activate(self, names: Active) -> None:
        """Says which adapters count from now on, alone.

        Args:
            names: one, several, or several with the weights that multiply their scaling. None of
                them, `[]`, leaves the bare layer.

        Raises:
            KeyError: an unknown adapter.
            ValueError: adapters are merged; a weight that is not finite.
            TypeError: neither names nor weights.
        """
        weights = as_weights(names)
        for name in weights:
            self.branch(name)
        self._refuse_merged("activate")
        self._active = weights

    def delete(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            KeyError: an unknown one.
            ValueError: it is merged.
        """
        self.branch(name)
        if name in self._merged:
            self._refuse_merged("delete")
        del self.adapters[name]
        self._active.pop(name, None)

    def rename(self, name: str, new: str) -> None:
        """Gives an adapter another name.

        Raises:
            KeyError: an unknown one.
            ValueError: the new name is taken or cannot be one.
            TypeError: the new name is no string.
        """
        self.branch(name)
        self._check_new(new)

        def renamed(key: str) -> str:
            return new if key == name else key

        branches = list(self.adapters.items())
        self.adapters.clear()
        self.adapters.update({renamed(key): branch for key, branch in branches})
        self._active = {renamed(key): weight for key, weight in self._active.items()}
        self._merged = tuple(renamed(key) for key in self._merged)

    def forward(
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """The layer and its active adapters, in the dtype of the layer's output.

        Args:
            x: what the layer takes.

        Raises:
            ValueError: x does not fit.
        """
        y = self.base_layer(x)
        dtype = y.dtype
        for name, weight in self._active.items():
            if name not in self._merged:
                branch = self.branch(name)
                y = torch.add(y, branch(x), alpha=weight * branch.scaling)
        return y.to(dtype)

    def merge(self, names: str | Sequence[str] | None = None) -> None:
        """Adds active adapters to the layer's weight. Those that are merged already stay so.

        The sum is in float32 (float64 of float64) and rounded once to the weight's dtype. What
        adapters learn while merged shows after `unmerge`.

        Args:
            names: all active ones if None; the others go on being computed beside it.

        Raises:
            KeyError: an unknown adapter.
            ValueError: an adapter that is not active; a weight that cannot be added to, such as a
                quantised one; a sum that is not finite.
        """
        wanted = list(self._active) if names is None else list(as_weights(names))
        for name in wanted:
            self.branch(name)
            if name not in self._active:
                raise ValueError(
                    f"merge: expected active adapters ({', '.join(self._active) or 'none is'}), "
                    f"got {name!r}; activate it first"
                )
        # In the order of activation, so that the sum does not depend on who was merged first.
        together = tuple(name for name in self._active if name in {*wanted, *self._merged})
        if together == self._merged:
            return
        holder: Any = self.base_layer
        original = self.unmerged_weight
        parts = [(self.branch(name), self._active[name]) for name in together]
        holder.weight = merged_weight(self.base_layer, original, parts)
        self._unmerged, self._merged = (original,), together

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
        return self.base_layer.train(self.training)

    def _refuse_merged(self, what: str) -> None:
        if self._merged:
            raise ValueError(
                f"{what}: expected no merged adapters, got {', '.join(self._merged)}; unmerge() "
                "first"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MonarchAdapter":
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

    def extra_repr(self) -> str:
        """Which adapters count."""
        return f"active={self._active}, merged={list(self._merged)}"
