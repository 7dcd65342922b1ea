"""A key-value cache of unrotated keys.

Distance rules rotate one key in several ways, according to how far the query is, and length-aware
frequency rules rotate it anew as the context grows, so a cache may hold no rotated keys. Positions
are kept beside the keys. Storage doubles when it is full: appending n tokens one by one copies O(n)
keys in all.
"""

import weakref
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

MINIMUM_CAPACITY = 64


class KeyValueCache:
    """Unrotated keys, values and key positions of one attention layer, for inference.

    Each layer needs a cache of its own. A call that fails leaves the cache as it was.

    Example:
        >>> cache = KeyValueCache()
        >>> prompt = attention(x, cache=cache)
        >>> step = attention(next_token, cache=cache)

    Attributes:
        length: number of tokens held.
        by_index: whether each token's position is its index in the cache, in every row, because no
            call gave any other.
    """

    def __init__(self) -> None:
        self.length = 0
        self.by_index = True
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None
        self._layer: weakref.ref[object] | None = None

    def claim(self, layer: object) -> None:
        """Notes whose keys these are.

        Raises:
            ValueError: they are another layer's.
        """
        owner = None if self._layer is None else self._layer()
        if owner is not None and owner is not layer and self.length > 0:
            raise ValueError(
                "this KeyValueCache holds the keys of another layer; make one for each layer, such "
                "as [KeyValueCache() for _ in layers]"
            )
        self._layer = weakref.ref(layer)

    def append(
        self,
        key: Float[Tensor, "batch kv_heads seq head_dim"],
        value: Float[Tensor, "batch kv_heads seq value_dim"],
        positions: Shaped[Tensor, "rows seq"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds tokens at the end: `write` and `commit`."""
        everything = self.write(key, value, positions)
        self.commit(everything[0].shape[2], by_index=self.counts(positions))
        return everything

    def write(
        self,
        key: Float[Tensor, "batch kv_heads seq head_dim"],
        value: Float[Tensor, "batch kv_heads seq value_dim"],
        positions: Shaped[Tensor, "rows seq"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Writes tokens behind the end, where they are not held before `commit`.

        Args:
            key: unrotated keys of the new tokens.
            value: their values.
            positions: their positions, where rows is 1 or batch, and the same at every call; on
                from the last token held if None.

        Returns:
            All keys, values and positions so far; views that the next `append` may invalidate.

        Raises:
            ValueError: a gradient is being recorded, or shapes differ from what the cache holds.
        """
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise ValueError(
                "a key-value cache is for inference, but a gradient is being recorded through it; "
                "run under torch.no_grad(), or train without a cache"
            )
        start, stop = self.length, self.length + key.shape[-2]
        if positions is not None and not positions.is_floating_point():
            positions = positions.long()
        if positions is None:
            positions = self.next_positions(key.shape[-2], key.device)
        self._keys = _grown(self._keys, key, start, stop, axis=2, name="keys")
        self._values = _grown(self._values, value, start, stop, axis=2, name="values")
        self._positions = _grown(self._positions, positions, start, stop, axis=1, name="positions")
        self._keys[:, :, start:stop] = key
        self._values[:, :, start:stop] = value
        self._positions[:, start:stop] = positions
        return self._keys[:, :, :stop], self._values[:, :, :stop], self._positions[:, :stop]

    def counts(self, positions: Tensor | None) -> bool:
        """Whether positions would still be indices with tokens at `positions` at the end."""
        return positions is None and (self.by_index or self.length == 0)

    def commit(self, length: int, *, by_index: bool) -> None:
        """Holds what was written up to `length`; see `counts` for `by_index`."""
        self.length, self.by_index = length, by_index

    def next_positions(self, count: int, device: torch.device) -> Int[Tensor, "rows count"]:
        """Positions of the next `count` tokens: on from the last one held, row by row."""
        steps = torch.arange(count, device=device)[None]
        if self._positions is None or self.length == 0:
            return steps
        return self._positions[:, self.length - 1 : self.length] + 1 + steps

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Takes the given rows of the batch, as beam search does; rows may repeat or be fewer."""
        if self._keys is None or self._values is None or self._positions is None:
            return
        self._keys, self._values = self._keys[rows], self._values[rows]
        if self._positions.shape[0] > 1:
            self._positions = self._positions[rows]

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on.

        Raises:
            ValueError: fewer tokens are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be from 0 to {self.length}, got {length}")
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __bool__(self) -> bool:
        return True  # an empty cache is one too

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layer": None}  # whoever loads it claims it

    def __repr__(self) -> str:
        return f"KeyValueCache(length={self.length})"


def _alike(held: Tensor, new: Tensor, axis: int) -> bool:
    """Whether one continues the other, but for its length along `axis`."""
    shapes = ((*x.shape[:axis], *x.shape[axis + 1 :]) for x in (held, new))
    return next(shapes) == next(shapes) and held.dtype == new.dtype and held.device == new.device


def _grown(
    held: Tensor | None, new: Tensor, start: int, stop: int, *, axis: int, name: str
) -> Tensor:
    """`held` with room for `stop` entries along `axis`."""
    if start == 0 and held is not None and not _alike(held, new, axis):
        held = None  # nothing is in it, so another batch may begin
    if held is not None and held.shape[:axis] != new.shape[:axis]:
        raise ValueError(
            f"the cache holds {name} of batch and heads {tuple(held.shape[:axis])}, got "
            f"{tuple(new.shape[:axis])}; start another KeyValueCache"
        )
    # Positions may turn from integers to fractions.
    dtype = new.dtype if held is None else torch.promote_types(held.dtype, new.dtype)
    if held is not None and stop <= held.shape[axis] and held.dtype == dtype:
        return held
    capacity = max(stop, 2 * start, MINIMUM_CAPACITY)
    larger = new.new_empty(*new.shape[:axis], capacity, *new.shape[axis + 1 :], dtype=dtype)
    if held is not None:
        larger.narrow(axis, 0, start).copy_(held.narrow(axis, 0, start))
    return larger
