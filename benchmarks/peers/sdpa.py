"""torch's `scaled_dot_product_attention` after RoPE in plain torch: plain rule only.

In decoding the keys of a plain model are cached rotated, so that only the query is turned.
`-alone` leaves RoPE out altogether: the price of the attention itself. Where a backend refuses
grouped heads, keys and values are repeated in the call.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.case import Unavailable
from benchmarks.peers.rope import apply_rope, tables
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload, Forward

NAMES = ("sdpa", "sdpa-flash", "sdpa-cudnn", "sdpa-flash-alone", "sdpa-cudnn-alone")
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def build(name: str, workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    if len(rule.branches) != 1:
        raise Unavailable("torch's attention takes one rotation: the plain rule only")
    _, backend, alone = [*name.split("-"), "", ""][:3]
    s = workload.shape
    query_table, key_table = tables(workload, rule.branches[0])
    decoding = s.queries < s.keys
    if decoding and s.queries > 1:
        raise Unavailable("torch's fused attention aligns the first query, not the last one")

    attend = _attend(workload, backend)
    cached = apply_rope(workload.key.detach(), key_table) if decoding or alone else None
    turned = apply_rope(workload.query.detach(), query_table) if alone else None
    if cached is not None and s.backward:
        raise Unavailable("gradients of a cache that is rotated already are not those of its keys")

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = apply_rope(query, query_table) if turned is None else turned
        key = apply_rope(key, key_table) if cached is None else cached
        return attend(query, key, value)

    return forward


def _attend(workload: "AttentionWorkload", backend: str) -> "Forward":
    """Torch's attention by one backend, or its own choice if empty."""
    s = workload.shape
    causal, groups = s.queries == s.keys, s.heads // s.kv_heads

    def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with _only(backend):
            return scaled_dot_product_attention(
                query, key, value, is_causal=causal, enable_gqa=groups > 1
            )

    def repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        with _only(backend):
            return scaled_dot_product_attention(query, key, value, is_causal=causal)

    try:
        return _asked(grouped, workload)
    except Unavailable:
        if groups == 1:
            raise
    return _asked(repeated, workload)


def _only(backend: str) -> AbstractContextManager[object]:
    return sdpa_kernel(BACKENDS[backend]) if backend else nullcontext()


def _asked(attend: "Forward", workload: "AttentionWorkload") -> "Forward":
    """`attend`, unless a small problem is refused: by an error, its reasons in warnings."""
    s = workload.shape
    length = 1 if s.queries == 1 else 64
    options = {"dtype": s.dtype, "device": s.device, "requires_grad": s.backward}
    query = torch.zeros(1, s.heads, length, s.head_dim, **options)
    key = torch.zeros(1, s.kv_heads, 64, s.head_dim, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            attend(query, key, key)
        except RuntimeError as error:
            reasons = [str(error).splitlines()[0]]
            reasons += [str(warning.message).splitlines()[0] for warning in told]
            raise Unavailable("; ".join(reasons)) from None
    return attend
