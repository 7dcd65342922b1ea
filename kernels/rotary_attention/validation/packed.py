"""Checks of packed sequences at the call; `kernels/packing.py` reads the numbers later."""

from torch import Tensor

from ropewalk.kernels.packing import check_cumulative


def check_packed(
    cu_query: Tensor | None,
    cu_key: Tensor | None,
    query: Tensor,
    *,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
) -> None:
    """Cumulative lengths as far as shapes tell."""
    if cu_query is None:
        if cu_key is not None:
            raise ValueError(
                "cu_seqlens_key needs cu_seqlens_query, got None for it; pass both, or "
                "cu_seqlens_query alone where queries and keys are the same tokens"
            )
        return
    for name, cu in (("cu_seqlens_query", cu_query), ("cu_seqlens_key", cu_key)):
        if cu is None:
            continue
        check_cumulative(name, cu, query.device)
    if cu_key is not None and cu_key.shape != cu_query.shape:
        raise ValueError(
            f"cu_seqlens_query and cu_seqlens_key must hold equally many sequences, got "
            f"{cu_query.shape[0] - 1} and {cu_key.shape[0] - 1}"
        )
    if query.shape[0] != 1:
        raise ValueError(
            f"packed sequences lie one after another in a batch of 1, got batch {query.shape[0]}; "
            f"pass query (1, heads, tokens, head_dim)"
        )
    for name, given in (("key_lengths", key_lengths), ("attention_mask", attention_mask)):
        if given is not None:
            raise ValueError(
                f"{name} cannot be combined with cu_seqlens_query, which says where sequences end; "
                f"leave out the padding, or one of the two"
            )
