"""`rotate_query_key`: queries and keys turned by their angles, after an RMSNorm if wanted."""

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.plain import check_transformable, is_transformed
from ropewalk.kernels.rotary import validation
from ropewalk.kernels.rotary.inplace import rotate_inplace
from ropewalk.kernels.rotary.op import rotate_query_key_op
from ropewalk.kernels.rotary.reference import composite
from ropewalk.kernels.rotary.rotation import Rotation
from ropewalk.kernels.shapes import Layout


def rotate_query_key(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    cos: Float[Tensor, "*#batch query pairs"],
    sin: Float[Tensor, "*#batch query pairs"],
    *,
    layout: Layout = "half",
    query_norm_weight: Float[Tensor, " head_dim"] | None = None,
    key_norm_weight: Float[Tensor, " head_dim"] | None = None,
    norm_eps: float = 1e-6,
    key_cos: Float[Tensor, "*#batch key pairs"] | None = None,
    key_sin: Float[Tensor, "*#batch key pairs"] | None = None,
    inplace: bool = False,
    backend: Backend = "auto",
) -> tuple[
    Float[Tensor, "batch heads query head_dim"], Float[Tensor, "batch kv_heads key head_dim"]
]:
    """Rotates the leading 2·pairs dimensions of queries and keys, in one launch on a GPU.

    With weights each head is first normed, z = x · w / √(mean(x²) + eps), over all its dimensions.
    All is computed in float32 (float64 for float64 tensors) and rounded once, at the end. Gradients
    reach query, key and the weights. One read and one write of each tensor, forward; the backward
    reads the gradients, with norms the tensors too, and writes the gradients. Gradients can be
    differentiated again (`create_graph=True`), with norms by the equation in torch.

    Args:
        query: of any strides; the view that `.transpose(1, 2)` makes of (batch, seq, heads,
            head_dim) is read without a copy, and the result lies in memory in the same order.
            Under `torch.autocast` query and key are first cast to its dtype, except in place.
        key: of the query's dtype, with any number of heads.
        cos: cosines of the angles, one per pair of dimensions: (query, pairs) or (1 | batch, query,
            pairs), float32 or float64, such as `RotaryEmbedding` and `AxialRotary` give them.
        sin: sines of the angles, of the shape of `cos`.
        layout: which dimensions are pairs; see `ropewalk.kernels.rotary.reference`.
        query_norm_weight: weights of the queries' norm; None for no norm. For norms that multiply
            by 1 + w (Gemma) pass w + 1.
        key_norm_weight: weights of the keys' norm.
        norm_eps: added to the mean square.
        key_cos: cosines for the keys, where they are not at the queries' positions.
        key_sin: sines for the keys.
        inplace: write over `query` and `key` and return them. Gradients flow through it, unless
            there are norms: their backward needs the tensors as they were, and a copy of them would
            cost the memory that this saves.
        backend: "auto", "triton" or "reference"; see `ropewalk.kernels.rotary.backend`.

    Returns:
        The rotated queries and keys, in their dtype.

    Raises:
        ValueError: sizes, dtypes or devices that do not fit, tables that need a gradient, an
            impossible backend, a norm in place while its gradient is needed, or in place under
            `torch.func` and forward differentiation, which see ordinary torch.
        TypeError: a dtype or an object of the wrong kind.
        RuntimeError: in place on a leaf that requires a gradient, as in torch.

    Example:
        >>> cos, sin = RotaryEmbedding(64)(torch.arange(100))
        >>> query, key = rotate_query_key(query, key, cos, sin)
    """
    validation.check_layout(layout)
    check_backend(backend)
    validation.check_tensors(query=query, key=key)
    if not inplace:
        query, key = cast_inputs(query, key)
    validation.check_query_key(query, key)
    validation.check_tables("", cos, sin, query)
    if (key_cos is None) != (key_sin is None):
        raise ValueError("key_cos and key_sin: expected both or neither, got one")
    if key_cos is None or key_sin is None:
        if query.shape[2] != key.shape[2]:
            raise ValueError(
                f"key: expected {query.shape[2]} tokens, as many as the query has, got "
                f"{key.shape[2]}; pass key_cos and key_sin for keys at positions of their own"
            )
        key_cos, key_sin = cos, sin
    else:
        validation.check_tables("key_", key_cos, key_sin, key)
        if key_cos.shape[-1] != cos.shape[-1]:
            raise ValueError(
                f"key_cos: expected {cos.shape[-1]} angles as the query has, got "
                f"{key_cos.shape[-1]}"
            )
    validation.check_norm("query_norm_weight", query_norm_weight, query)
    validation.check_norm("key_norm_weight", key_norm_weight, key)
    validation.check_eps(norm_eps)
    if inplace:
        if is_transformed():
            raise ValueError(
                "inplace: expected False under torch.func and in forward differentiation, got True"
            )
        validation.check_inplace(query, key, query_norm_weight, key_norm_weight)

    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    query_cos, query_sin, key_cos, key_sin = (
        table.to(dtype) if table.ndim == 3 else table.to(dtype)[None]
        for table in (cos, sin, key_cos, key_sin)
    )
    tables = (query_cos, query_sin, key_cos, key_sin)
    weights = (query_norm_weight, key_norm_weight)
    if is_transformed():
        check_transformable(backend)
        return composite(query, key, Rotation(*tables, *weights, float(norm_eps), layout, False))
    if inplace:
        return rotate_inplace(query, key, tables, weights, float(norm_eps), layout, backend)
    return rotate_query_key_op(
        query, key, *tables, *weights, float(norm_eps), layout, False, backend
    )
