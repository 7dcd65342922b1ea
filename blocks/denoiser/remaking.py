"""Norms that are made once more in the backward instead of being kept for it.

What follows a norm keeps its input for the gradient of its weights: two tensors of the stream's
size in each block, of about fourteen that a block keeps. Both are made again from the stream, which
is kept anyway, by one pass over it. This is done where the tensors are saved, so that it goes for
every mixer and feed-forward. Hooks that are at work already, those of `torch.utils.checkpoint` or
`save_on_cpu`, get the stream to keep in the norm's place. Compilers plan memory by themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Hook = Callable[[Any], Any]


class _Remade(NamedTuple):
    """In the place of a view of the norm: of what it is made, and where the view lies in it."""

    kept: tuple[Any, ...]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def remade(h: Tensor, make: Callable[..., Tensor], *of: Tensor) -> Iterator[None]:
    """Within it, whatever wants to keep `h` for a backward keeps `of` instead.

    Args:
        h: contiguous.
        make: gives `h` again, bit by bit, when it is called with `of`.
        *of: tensors that are kept anyway.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _allowed():
        yield
        return
    outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
    keep, give = outer if outer is not None else (_itself, _itself)
    storage, start = h.untyped_storage()._cdata, h.storage_offset()
    sources = list(of)

    def pack(tensor: Tensor) -> Any:
        same = tensor.dtype == h_dtype and tensor.untyped_storage()._cdata == storage
        if not same:
            return keep(tensor)
        kept = tuple(keep(x) for x in sources)
        return _Remade(kept, tensor.size(), tensor.stride(), tensor.storage_offset() - start)

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Remade):
            return give(packed)
        with torch.no_grad():
            made = make(*(give(x) for x in packed.kept))
        return made.as_strided(packed.size, packed.stride, packed.offset)

    h_dtype = h.dtype
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    sources.clear()  # both hooks live as long as what they packed


def _allowed() -> bool:
    """Transforms of torch.func allow no hooks."""
    return (
        torch._C._autograd._saved_tensors_hooks_is_enabled()
        and not torch._C._are_functorch_transforms_active()
    )


def _itself(x: Any) -> Any:
    return x
