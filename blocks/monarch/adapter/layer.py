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

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.monarch.adapter.base_layer import features_of, place_of
from ropewalk.blocks.monarch.adapter.branch import MonarchBranch
from ropewalk.blocks.monarch.adapter.merging import is_addable, merged_weight, weight_with
from ropewalk.blocks.monarch.adapter.names import Active, as_weights, check_name
from ropewalk.blocks.monarch.adapter.wrapped import WrappedLayer
from ropewalk.blocks.monarch.shape import Blocks
from ropewalk.kernels.monarch import Backend


class MonarchAdapter(WrappedLayer):
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
        if isinstance(linear, MonarchAdapter):
            raise ValueError(
                "linear: expected a layer without adapters, got a MonarchAdapter; give it another "
                f"adapter with .add({name!r})"
            )
        sizes = features_of(linear)
        super().__init__(linear)
        self.in_features, self.out_features = sizes
        self.adapters = nn.ModuleDict()
        # What `activate` was told: the weight of each adapter that counts.
        self._active: dict[str, float] = {}
        self.add(
            name, nblocks=nblocks, rank=rank, scaling=scaling, dropout=dropout, backend=backend,
            dtype=dtype,
        )  # fmt: skip
        self._active = {name: 1.0}
        self._freeze()

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, for models that read it instead of calling.

        Where active adapters are not merged it is summed at each access, for about the operations
        of as many rows as the adapters have ranks; else it is the parameter itself, as it is of a
        quantised or sharded layer. Assigning sets the weight without adapters.
        """
        holder: Any = self.base_layer
        weight = holder.weight
        beside = [
            (self.branch(name), factor)
            for name, factor in self._active.items()
            if name not in self._merged
        ]
        if not beside or not is_addable(weight):
            return weight
        return weight_with(self.base_layer, weight, beside).to(weight.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight or bias that a model assigns, as to tie it, is the wrapped layer's."""
        if name not in ("weight", "bias"):
            super().__setattr__(name, value)
            return
        merged = self._merged
        self.unmerge()
        setattr(self.base_layer, name, value)
        self.put_merged(merged, self.summed(merged))

    @property
    def active(self) -> dict[str, float]:
        """The adapters that count, and with which weight."""
        return dict(self._active)

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
            TypeError: no names; weights are `activate`'s.
        """
        if isinstance(names, Mapping):
            raise TypeError(
                f"merge: expected names, got weights, {dict(names)}; activate(…) with them first"
            )
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
        if together != self._merged:
            self.put_merged(together, self.summed(together))

    def summed(self, names: Sequence[str]) -> nn.Parameter | None:
        """What the weight would be with these active adapters merged and no others.

        Returns:
            A new parameter; None if there are no names.

        Raises:
            ValueError: a weight that cannot be added to, or a sum that is not finite.
        """
        if not names:
            return None
        parts = [(self.branch(name), self._active[name]) for name in names]
        return merged_weight(self.base_layer, self.unmerged_weight, parts)

    def _refuse_merged(self, what: str) -> None:
        if self._merged:
            raise ValueError(
                f"{what}: expected no merged adapters, got {', '.join(self._merged)}; unmerge() "
                "first"
            )

    def extra_repr(self) -> str:
        """Which adapters count."""
        return f"active={self._active}, merged={list(self._merged)}"
