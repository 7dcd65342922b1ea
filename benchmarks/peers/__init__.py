"""Who computes rotary attention: the library's backends and everybody else.

Rotations have their peers in `rotation`, vocabulary losses in `linear_cross_entropy`.

A peer's name is a method, and `:plain` after it where the method computes plain RoPE inside a case
of another rule, as the price that the rule is compared with, and `:captured` where its call is
recorded in a CUDA graph and replayed (graph.py).

    auto, triton, flash, reference   `ropewalk.kernels.rotary_attention` with that backend
    sdpa                             RoPE in plain torch, then torch's attention, its own choice
    sdpa-flash, sdpa-cudnn           the same with that backend
    sdpa-flash-alone, …              on rotated queries and keys: attention without RoPE
    two-matrix, two-matrix-compiled  one score matrix a branch, chosen between, then the softmax
    flex                             one flex_attention a branch, merged by logsumexp
    flash-attn                       one flash-attn call a branch, merged by logsumexp
    copy                             no attention: a copy that moves as many bytes as decoding reads
"""

from typing import TYPE_CHECKING

from benchmarks.attention import COPY, PLAIN, Forward
from benchmarks.peers import copying, flash_attn, flex, library, sdpa, two_matrix
from benchmarks.peers.graph import SUFFIX, captured
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload

METHODS = {
    **dict.fromkeys(library.BACKENDS, library.build),
    **dict.fromkeys(sdpa.NAMES, sdpa.build),
    "two-matrix": two_matrix.build,
    "two-matrix-compiled": two_matrix.build,
    "flex": flex.build,
    "flash-attn": flash_attn.build,
    COPY: copying.build,
}


def attention_peer(name: str, workload: "AttentionWorkload") -> Forward:
    """The function of (query, key, value) that a peer times.

    Raises:
        Unavailable: it cannot take part.
        KeyError: there is no such method.
    """
    method = name.partition(":")[0]
    forward = METHODS[method](method, workload, rule_of(name, workload.shape.rule))
    return captured(forward) if name.endswith(SUFFIX) else forward


def rule_of(name: str, rule: DistanceRule) -> DistanceRule:
    """The rule that a peer computes in a case of `rule`."""
    return PLAIN if name.removesuffix(SUFFIX).endswith(":plain") else rule
