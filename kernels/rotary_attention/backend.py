"""Which implementation answers a problem: Triton's kernels, attention that exists, or the equation.

    reference   the equation in torch, by blocks of queries (reference/); takes everything
    flash       near and far attention from a library, merged by logsumexp (flash/)
    triton      one kernel for all branches, on NVIDIA GPUs or in Triton's interpreter (triton/)
    auto        the fastest of them that takes the problem: all of them mean the same result

The choice is made where the operator runs and not while a compiler traces it, because it depends
on what is installed and on the values of positions. Triton is imported only once it was chosen.
"""

from types import ModuleType
from typing import Literal, get_args

from ropewalk.kernels import backends
from ropewalk.kernels.rotary_attention import flash, reference
from ropewalk.kernels.rotary_attention.problem import Problem

Backend = Literal["auto", "reference", "flash", "triton"]


def check_backend(backend: str) -> None:
    """A name that exists; whether it can run is known when the operator does."""
    backends.check_backend(backend, get_args(Backend))


def implementation(problem: Problem, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` answer the problem.

    Raises:
        ValueError: the backend that was asked for cannot answer it; the message says why.
    """
    automatic = backend == "auto"
    if backend == "reference":
        return reference
    on_cuda = problem.query.device.type == "cuda"
    if backend == "triton" or (automatic and on_cuda):
        reason = backends.triton_unavailable(problem.query)
        if reason is None:
            from ropewalk.kernels.rotary_attention import triton as kernels

            reason = kernels.unsupported(problem)
            if reason is None:
                return kernels
        if not automatic:
            raise ValueError(f"backend 'triton' cannot run: {reason}")
    reason = flash.unsupported(problem)
    if reason is None:
        return flash
    if not automatic:
        raise ValueError(f"backend 'flash' cannot run: {reason}")
    return reference
