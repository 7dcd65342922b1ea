"""Activation memory: what autograd keeps between a forward and its backward.

It is counted where tensors are handed over to be kept, so the figure is exact, the same on every
machine, and needs no GPU. A storage counts once and as a whole, however many views of it are kept:
that much memory is held. Parameters, buffers and inputs, which are there anyway, do not count.
Compiled graphs hand over what they keep in the same way.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_mib(forward: Callable[[], object], known: Iterable[Tensor]) -> float:
    """MiB that a forward keeps for its backward, beside the storages of `known`."""
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # held until all is counted: no address is used twice
    size = sum(nbytes for place, nbytes in kept.items() if place not in there)
    del result
    return size / 2**20
