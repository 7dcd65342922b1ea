"""Which implementation of an op runs: its equation in torch, or its Triton kernels.

    reference   the equation; any device and dtype
    triton      the kernels; CUDA devices, or Triton's interpreter
    numba       compiled loops on a CPU, of ops that are sequential (`kernels/<op>/numba/`)
    auto        triton where it can run on a CUDA device, numba on a CPU where it can be imported
                and the op has it, else reference: the result is the same

The choice is made where an operator runs and not while a compiler traces it, because it depends on
what is installed. Triton and numba are imported only once they were chosen. An op with more
implementations than these makes its own choice of what is here.
"""

import importlib
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from ropewalk.kernels.interpreter import interpreted

Backend = Literal["auto", "reference", "triton"]


def check_backend(backend: str, names: tuple[str, ...] = get_args(Backend)) -> None:
    """Refuses a name that does not exist; whether it can run is known when the operator does."""
    if backend not in names:
        raise ValueError(f"backend: expected one of {', '.join(names)}, got {backend!r}")


def implementation(
    x: Tensor, backend: str, reference: ModuleType, triton: str, numba: str | None = None
) -> ModuleType:
    """The module that does the work.

    Args:
        x: a tensor that the op was given.
        backend: one of `Backend`.
        reference: the equation.
        triton: the name of the kernels' package, which is imported if it is chosen. Its
            `unsupported(x)` says why it cannot run either, or None.
        numba: the same of the compiled loops, if the op has them.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    if backend == "reference":
        return reference
    if backend == "auto":
        compiled = {"cuda": triton, "cpu": numba}.get(x.device.type)
    else:
        compiled = {"triton": triton, "numba": numba}[backend]
    if compiled is None:
        return reference
    reason = triton_unavailable(x) if compiled == triton else numba_unavailable(x)
    if reason is None and compiled == numba:
        reason = _import_error("numba")
    if reason is None:
        kernels = importlib.import_module(compiled)
        reason = kernels.unsupported(x)
        if reason is None:
            return kernels
    if backend == "auto":
        return reference
    raise ValueError(f"backend {backend!r} cannot run: {reason}")


def numba_unavailable(x: Tensor) -> str | None:
    """Why numba cannot run on tensors like this one, or None. Never imports numba."""
    if x.device.type != "cpu":
        return f"expected tensors on a CPU, got {x.device}; use 'triton' or 'auto'"
    if find_spec("numba") is None:
        return "numba is not installed; install ropewalk[numba]"
    return None


@cache
def _import_error(package: str) -> str | None:
    """Why a package that is installed cannot be imported, or None; asked once.

    numba refuses any NumPy that is newer than itself.
    """
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever it meets in what it was not made for
        return f"{package} is installed but cannot be imported: {error}"
    return None


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
