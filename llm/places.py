"""Where keys and queries are, found once for all layers of a forward pass.

Most forward passes have no padding, positions that are the indices of the tokens, and a cache that
begins with the first token. Then nothing need be said: attention without positions takes key j to
be at j and the last query at the last valid key, which lets kernels compute where they would
search. To see it a value is read back to the host, which a GPU has to wait for. So it is done once
and kept with the plan, the tensor that all layers of one forward pass share and no two passes do;
and never while compiling, where values do not exist.
"""

import weakref
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ropewalk.llm.mask_plan import INDEX, KeysAndQueries, check_plan, read_plan


class Places(NamedTuple):
    """Positions as `rotary_attention` takes them.

    Attributes:
        query_positions: int64 (1 | batch, query); None if the default ones are meant.
        key_positions: int64 (1 | batch, key); None exactly if `query_positions` is.
        visible: (batch, 1, 1, key), False at padding; None if there is none.
        key_lengths: int64 (batch,), how much of the cache is filled; None if all of it is.
        length: tokens in the context. Not the greatest key position: slots of a static cache that
            are still empty lie beyond.
    """

    query_positions: Tensor | None
    key_positions: Tensor | None
    visible: Tensor | None
    key_lengths: Tensor | None
    length: Tensor

    def without_first(self, count: int) -> "Places":
        """The same for all queries but the first ones."""
        at, visible = self.query_positions, self.visible
        return self._replace(
            # By default the last query is at the last key, however many there are.
            query_positions=None if at is None else at[:, count:],
            visible=visible if visible is None or visible.shape[2] == 1 else visible[:, :, count:],
        )


class _Kept(NamedTuple):
    """Places, and what besides the plan they were found from."""

    position_ids: "weakref.ref[Tensor]"
    sizes: tuple[int, int, torch.device]
    places: Places


_kept = WeakIdKeyDictionary()


def explicit(where: KeysAndQueries) -> Places:
    """Places that say all positions."""
    length = where.query_positions.amax() + 1
    return Places(where.query_positions, where.key_positions, where.visible, None, length)


def places_of(
    plan: Int[Tensor, "_batch 1 rows columns"],
    position_ids: Int[Tensor, "_batch query"],
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
) -> Places:
    """Places from a plan and the positions the model gave to its queries.

    Args:
        plan: from `mask_plan.make_plan`.
        position_ids: the model's positions of the queries.
        query: says how many rows there are, and the device.
        key: says how many keys the cache returned.

    Raises:
        ValueError: see `mask_plan.read_plan`.
    """
    rows, keys, device = query.shape[0], key.shape[-2], query.device
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if torch.compiler.is_compiling() or captured:  # nothing can be read back then
        return explicit(read_plan(plan.to(device), position_ids.to(device), keys))
    kept, sizes = _kept.get(plan), (rows, keys, device)
    if kept is None or kept.position_ids() is not position_ids or kept.sizes != sizes:
        places = _find(plan.to(device), position_ids.to(device), rows, keys)
        kept = _kept[plan] = _Kept(weakref.ref(position_ids), sizes, places)
    return kept.places


def _find(plan: Tensor, position_ids: Tensor, rows: int, keys: int) -> Places:
    check_plan(plan, position_ids, keys)
    filled = _filled(plan, position_ids, keys)
    if filled is None or filled > keys:
        return explicit(read_plan(plan, position_ids, keys))
    lengths = None
    if filled < keys:
        lengths = torch.full((rows,), filled, device=plan.device)
    return Places(None, None, None, lengths, position_ids.amax() + 1)


def _filled(plan: Tensor, position_ids: Tensor, keys: int) -> int | None:
    """Keys up to the last query's, if all positions are indices and the first key is the first
    token; else None.
    """
    if plan.shape[2] > 2 or position_ids.shape[-1] == 0 or keys == 0:  # padded, or empty
        return None
    index = plan[:, 0, INDEX]
    alike = (position_ids == index[:, keys:]).all()
    alike, first, last = torch.stack((alike.long(), index[0, 0], index[0, -1])).tolist()
    return last + 1 if alike and first == 0 else None
