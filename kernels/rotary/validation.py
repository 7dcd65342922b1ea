"""What rotations refuse, and in which words."""

import math

import torch
from torch import Tensor

from ropewalk.kernels.rotary.overlap import overlap
from ropewalk.kernels.shapes import Layout

LAYOUTS: tuple[Layout, ...] = ("half", "interleaved")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TABLE_DTYPES = (torch.float32, torch.float64)


def check_layout(layout: str) -> None:
    """One of the two names."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")


def check_tensors(**tensors: object) -> None:
    """Tensors, by name."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")


def check_query_key(query: Tensor, key: Tensor) -> None:
    """Dtypes, devices and sizes of queries and keys."""
    for name, x in (("query", query), ("key", key)):
        if x.ndim != 4:
            raise ValueError(
                f"{name}: expected 4 dimensions (batch, heads, seq, head_dim), got shape "
                f"{tuple(x.shape)}; .transpose(1, 2) makes it from (batch, seq, heads, head_dim)"
            )
        if x.dtype not in FLOATS:
            raise TypeError(
                f"{name}: expected float32, bfloat16, float16 or float64, got {x.dtype}; cast it"
            )
    for what, a, b in (
        ("dtype", query.dtype, key.dtype),
        ("device", query.device, key.device),
        ("batch size", query.shape[0], key.shape[0]),
        ("head_dim", query.shape[-1], key.shape[-1]),
    ):
        if a != b:
            raise ValueError(f"query and key: expected the same {what}, got {a} and {b}")


def check_tables(name: str, cos: Tensor, sin: Tensor, x: Tensor) -> None:
    """Cosines and sines of the tokens of `x`; `name` is "" or "key_"."""
    cosines, sines = f"{name}cos", f"{name}sin"
    check_tensors(**{cosines: cos, sines: sin})
    for table, values in ((cosines, cos), (sines, sin)):
        if values.dtype not in TABLE_DTYPES:
            raise TypeError(
                f"{table}: expected float32 or float64, got {values.dtype}; build the table in "
                "float32, as RotaryEmbedding does, or pass .float() and lose what it has lost"
            )
        if values.device != x.device:
            raise ValueError(f"{table}: expected it on {x.device}, got {values.device}; move it")
        if values.requires_grad:
            raise ValueError(
                f"{table}: expected no gradient to be needed, because this op has none for angles; "
                "use ropewalk.kernels.rotary.rotate, which has, or .detach()"
            )
    if cos.shape != sin.shape:
        raise ValueError(
            f"{cosines} and {sines}: expected equal shapes, got {tuple(cos.shape)} and "
            f"{tuple(sin.shape)}"
        )
    batch, _, seq, head_dim = x.shape
    rows, pairs = cos.shape[:-1], cos.shape[-1] if cos.ndim else 0
    if not 1 <= pairs <= head_dim // 2:
        raise ValueError(
            f"{cosines}: expected 1 to head_dim/2 = {head_dim // 2} angles for head_dim = "
            f"{head_dim}, got {pairs}; pass one angle per pair, not per dimension"
        )
    if tuple(rows) not in ((seq,), (1, seq), (batch, seq)):
        raise ValueError(
            f"{cosines}: expected shape ({seq}, pairs) or ({batch}, {seq}, pairs), one row per "
            f"token, got {tuple(cos.shape)}"
        )


def check_norm(name: str, weight: Tensor | None, x: Tensor) -> None:
    """One weight per dimension of a head."""
    if weight is None:
        return
    check_tensors(**{name: weight})
    if tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(
            f"{name}: expected shape ({x.shape[-1]},), one weight per dimension of a head, got "
            f"{tuple(weight.shape)}; a norm over all heads at once has to run before"
        )
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a floating-point tensor, got {weight.dtype}; cast it")
    if weight.device != x.device:
        raise ValueError(f"{name}: expected it on {x.device}, got {weight.device}; move it")


def check_eps(eps: float) -> None:
    """Finite and not negative."""
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"norm_eps: expected a number, got {type(eps).__name__}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"norm_eps: expected a finite number of at least 0, got {eps}")


def check_inplace(query: Tensor, key: Tensor, *norm_weights: Tensor | None) -> None:
    """Whether queries and keys can be written over, now and for the backward."""
    for name, x in (("query", query), ("key", key)):
        if any(n > 1 and step == 0 for n, step in zip(x.shape, x.stride(), strict=True)):
            raise ValueError(
                f"{name}: expected elements of their own to write over, got an expanded tensor of "
                f"strides {x.stride()}; .clone() it, or pass inplace=False"
            )
    if query is key:
        raise ValueError("inplace: expected two tensors, got the same one as query and key")
    # Compilers hide storages; they keep apart what a graph writes to.
    if not torch.compiler.is_compiling() and overlap(query, key):
        raise ValueError(
            "inplace: expected a query and a key without common elements, got overlapping views of "
            "one tensor, which would be rotated twice; .clone() one, or pass inplace=False"
        )
    if not torch.is_grad_enabled():
        return
    normed = any(weight is not None for weight in norm_weights)
    needed = any(x is not None and x.requires_grad for x in (query, key, *norm_weights))
    if normed and needed:
        raise ValueError(
            "inplace: expected no gradient to be needed with a norm, whose backward needs the "
            "tensors as they were; pass inplace=False, or call it under torch.no_grad()"
        )
    for x in (query, key):
        if x.requires_grad and x.is_leaf:
            raise RuntimeError(
                "a leaf Variable that requires grad is being used in an in-place operation."
            )
