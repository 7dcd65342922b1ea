"""Who computes the mean cross-entropy of a vocabulary from hidden states.

    auto, triton, reference    `ropewalk.kernels.linear_cross_entropy` with that backend
    triton-skipping, …         the same with `exact=False`
    materialised               the logits as a matrix in the inputs' dtype, then torch's loss
    materialised-compiled      the same through torch.compile
    torch-fused                `F.linear_cross_entropy` (torch 2.13) with its default options
    torch-fused-512            the same by chunks of 512 tokens
    cce, cce-exact, cce-kahan  apple/ml-cross-entropy: as it comes, without skipping and summed in
                               float32, and as its authors advise for pretraining
    liger, liger-float32       Liger Kernel: as it comes, and with the weight's gradient in float32
    quack                      Dao-AILab/quack's chunked form

The libraries are in `loss_libraries`.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.case import Unavailable
from benchmarks.peers import loss_libraries
from ropewalk.kernels.linear_cross_entropy import Backend, linear_cross_entropy

if TYPE_CHECKING:
    from benchmarks.linear_cross_entropy import Loss, LossWorkload

BACKENDS = ("auto", "triton", "reference")
SKIP = "-skipping"
SKIPPING = {*(backend + SKIP for backend in BACKENDS), "cce", "cce-kahan"}
"""Peers that leave out what is below the dtype's resolution."""
TUNED_CHUNK = 512


def build(name: str, workload: "LossWorkload") -> "Loss":
    """The function of (hidden, weight, targets) that a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name in loss_libraries.BUILDERS:
        return loss_libraries.build(name, workload.shape)
    if name.startswith("torch-fused"):
        return _torch_fused(None if name == "torch-fused" else TUNED_CHUNK)
    if name == "materialised":
        return _materialised
    if name == "materialised-compiled":
        torch.compiler.reset()
        return torch.compile(_materialised, dynamic=False, fullgraph=True)
    return _library(name, workload)


def _materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, targets)


def _torch_fused(chunk: int | None) -> "Loss":
    fused = getattr(functional, "linear_cross_entropy", None)
    if fused is None:
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy; 2.13 has")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return fused(hidden, weight, targets, options=options)

    return loss


def _library(name: str, workload: "LossWorkload") -> "Loss":
    backend, exact = cast("Backend", name.removesuffix(SKIP)), not name.endswith(SKIP)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        value = linear_cross_entropy(hidden, weight, targets, exact=exact, backend=backend)
        return cast("Tensor", value)  # and no z-loss beside it

    try:  # a backend that the op refuses here is absent, not wrong
        with torch.no_grad():
            loss(workload.hidden[:1], workload.weight[:1], torch.zeros_like(workload.targets[:1]))
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
    return loss
