"""This library's op, by backend."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.case import Unavailable
from ropewalk.kernels.rotary_attention import DistanceRule, rotary_attention

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload, Forward

BACKENDS = ("auto", "triton", "flash", "reference")


def build(backend: str, workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    rotary = workload.rotary

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return rotary_attention(
            query,
            key,
            value,
            rotary=rotary,
            distance=rule,
            backend=backend,  # type: ignore[arg-type]
        )

    _require_backend(backend, workload, rule)
    return forward


def _require_backend(backend: str, workload: "AttentionWorkload", rule: DistanceRule) -> None:
    """A backend that the op refuses here is absent, not wrong: asked on a tiny problem."""
    head_dim, options = (
        workload.shape.head_dim,
        {
            "device": workload.shape.device,
            "dtype": workload.shape.dtype,
        },
    )
    query = torch.zeros(1, workload.shape.heads, 1, head_dim, **options)
    key = torch.zeros(1, workload.shape.kv_heads, 1, head_dim, **options)
    try:
        rotary_attention(
            query,
            key,
            key,
            rotary=workload.rotary,
            distance=rule,
            backend=backend,  # type: ignore[arg-type]
        )
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
