"""Whether an op may do its work without its operator, or must.

An operator costs some tens of microseconds each way, in which a small product is done. What it is
for, a compiler that takes the op as a whole, fake tensors and tensor subclasses, is not there in
plain eager mode; and modes that count operations see the operations themselves.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nobody looks on who needs the operator: no compiler, no fakes, no subclass."""
    if torch.compiler.is_compiling():
        return False
    return all(x is None or (type(x) in PLAIN and not x.is_meta) for x in tensors)


def is_transformed() -> bool:
    """Whether a transform of torch.func, or forward differentiation, is at work.

    An operator has no rule for them, and its tangent would be zero without a word.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def check_transformable(backend: str) -> None:
    """Refuses loops and kernels that were asked for where a transform is at work.

    Raises:
        ValueError: another backend than "auto" and "reference".
    """
    if backend not in ("auto", "reference"):
        raise ValueError(
            "backend: expected 'auto' or 'reference' under torch.func and in forward "
            f"differentiation, which compiled loops do not have, got {backend!r}"
        )
