"""What the back ends of all ops have in common: a name that exists, and whether Triton can run."""

from importlib.util import find_spec

import torch
from torch import Tensor

from ropewalk.kernels.interpreter import interpreted


def check_name(backend: str, names: tuple[str, ...]) -> None:
    """Refuses a name that does not exist; whether it can run is known when the operator does."""
    if backend not in names:
        raise ValueError(f"backend: expected one of {', '.join(names)}, got {backend!r}")


def triton_unavailable(x: Tensor) -> str | None:
    """Why Triton cannot run on tensors like this one, or None. Never imports Triton."""
    if x.device.type != "cuda" and not interpreted():
        return (
            f"expected tensors on a CUDA device, got {x.device}; move them, use 'auto', or set "
            "TRITON_INTERPRET=1 before triton is imported to run the kernels in its interpreter"
        )
    if x.dtype == torch.float64:
        return "its kernels compute in float32, got float64; use .float() or another backend"
    if find_spec("triton") is None:
        return "triton is not installed; install ropewalk[gpu]"
    return None
