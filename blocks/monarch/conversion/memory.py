"""Who else holds the memory of a parameter, whole or in part.

A parameter may be in two modules; two parameters may be views of one storage, `table[:64]` and
`table[32:96]`. Training or loading one changes the other, which ends when one is replaced. They are
told by the stretch of addresses between their first and last number, so that interleaved columns of
one storage, which have no number in common, count as shared too.
"""

from bisect import bisect_left
from itertools import accumulate

import torch
from torch import Tensor, nn

# A device, or the parameter itself where that has no addresses; the first, and the one after the
# last.
_Stretch = tuple[object, int, int]


class SharedMemory:
    """Where the parameters of a model lie. All are added before the first question."""

    def __init__(self) -> None:
        self._added: dict[object, list[tuple[int, int, nn.Module]]] = {}
        self._sorted: dict[object, tuple[list[int], list[int]]] = {}

    def add(self, parameter: Tensor, holder: nn.Module) -> None:
        """A parameter and the module that has it."""
        place, first, end = _stretch(parameter)
        self._added.setdefault(place, []).append((first, end, holder))
        self._sorted.pop(place, None)

    def holders(self, parameter: Tensor) -> dict[nn.Module, bool]:
        """The modules that have a parameter (True), or only one that overlaps it (False)."""
        place, first, end = _stretch(parameter)
        stretches = self._added.get(place, [])
        if place not in self._sorted:
            stretches.sort(key=lambda stretch: stretch[0])
            ends = accumulate((stretch[1] for stretch in stretches), max)
            self._sorted[place] = [stretch[0] for stretch in stretches], list(ends)
        starts, furthest = self._sorted[place]
        found: dict[nn.Module, bool] = {}
        index = bisect_left(starts, end) - 1
        while index >= 0 and furthest[index] > first:
            start, stop, holder = stretches[index]
            if stop > first:
                found[holder] = found.get(holder, False) or (start, stop) == (first, end)
            index -= 1
        return dict(reversed(found.items()))


def _stretch(parameter: Tensor) -> _Stretch:
    plain = type(parameter) in (nn.Parameter, Tensor) and parameter.layout == torch.strided
    if not plain or nn.parameter.is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter), 0, 1
    sizes = zip(parameter.shape, parameter.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes)
    first = parameter.data_ptr()
    return parameter.device, first, first + (last + 1) * parameter.element_size()
