"""Norms that are made once more in the backward instead of being kept for it.

What follows a norm keeps its input for the gradient of its weights: two tensors of the stream's
size in each block, of about fourteen that a block keeps. Both are made again from the stream, which
is kept anyway, by one pass over it. This is done where the tensors are saved, so that it goes for
every mixer and feed-forward. Hooks that are at work already, those of `torch.utils.checkpoint` or
`save_on_cpu`, get the stream to keep in the norm's place. Compilers plan memory by themselves.

Autograd does not see what hooks keep: that nothing of it was changed in place is checked here.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.autocast import AUTOCAST_DEVICES

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue], has no stub


class _Kept(NamedTuple):
    """A tensor as it was when it was saved."""

    tensor: Tensor
    version: int


class _Remade(NamedTuple):
    """In the place of a view of the norm: of what it is made, and where the view lies in it."""

    kept: tuple[Any, ...]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


@contextmanager
def remade(h: Tensor, make: Callable[..., Tensor], *of: Tensor) -> Iterator[None]:
    """Within it, whatever wants to keep `h` for a backward keeps `of` instead.

    Args:
        h: contiguous. Once it is changed in place it is kept as any other tensor.
        make: gives `h` again, bit by bit, when it is called with `of`.
        *of: tensors that are kept anyway.

    Raises:
        RuntimeError: in the backward, as autograd does: what was kept has been changed since.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not _allowed():
        yield
        return
    outer = _autograd._top_saved_tensors_default_hooks(True)
    keep, give = outer if outer is not None else (_keep, _unchanged)
    storage, start = h.untyped_storage()._cdata, h.storage_offset()
    dtype, version = h.dtype, h._version
    sources, as_now = list(of), _autocast_as_now(h.device.type)

    def pack(tensor: Tensor) -> Any:
        same = tensor.dtype == dtype and tensor.untyped_storage()._cdata == storage
        if not same or tensor._version != version:
            return keep(tensor)
        kept = tuple(keep(x) for x in sources)
        return _Remade(kept, tensor.size(), tensor.stride(), tensor.storage_offset() - start)

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Remade):
            return give(packed)
        with torch.no_grad(), as_now():
            made = make(*(give(x) for x in packed.kept))
        return made.as_strided(packed.size, packed.stride, packed.offset)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    sources.clear()  # both hooks live as long as what they packed


def _allowed() -> bool:
    """Transforms of torch.func allow no hooks."""
    return (
        _autograd._saved_tensors_hooks_is_enabled()
        and not torch._C._are_functorch_transforms_active()
    )


def _autocast_as_now(kind: str) -> Callable[[], AbstractContextManager[object]]:
    """Makes contexts in which autocast is what it is now, wherever the backward runs."""
    if kind not in AUTOCAST_DEVICES:
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def as_now() -> AbstractContextManager[object]:
        if not enabled and not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, dtype=dtype, enabled=enabled)

    return as_now


def _keep(tensor: Tensor) -> _Kept:
    # Detached: what an operation keeps of its own output would hold the operation, and this for
    # ever where no backward comes. Autograd attaches it again, and both count versions together.
    return _Kept(tensor.detach(), tensor._version)


def _unchanged(kept: _Kept) -> Tensor:
    if kept.tensor._version != kept.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: {kept.tensor.dtype} of shape {tuple(kept.tensor.shape)} is at version "
            f"{kept.tensor._version}, expected version {kept.version}; go back before an optimizer "
            "steps, or change a copy"
        )
    return kept.tensor
