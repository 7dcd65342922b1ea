"""How the output matrix S(E) is made of the input table E, so that the logits are h · S(E)ᵀ.

    identity    S(e) = e
    swap        S(e) = concat(e[d/2:], e[:d/2])
    shuffle     S(e) = flatten(reshape(e, (a, b))ᵀ), a · b = d, a the largest divisor of d up to √d
    orthogonal  S(e) = e Pᵀ, P a trained d × d matrix that starts orthogonal
    untied      S(E) is a matrix of its own

(kexue.fm/archives/9698.) At initialisation a hidden state points where its token's own embedding
does, so under the identity a token predicts itself; the other forms make the two directions
independent. Swap and shuffle permute coordinates and have no parameters; because

    h · S(e) = S⁻¹(h) · e

it is the hidden state that is permuted, d numbers a token, and never the table. The projection,
too, is applied to the hidden state: h · (e Pᵀ) = (h P) · e.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

OutputForm = Literal["identity", "swap", "shuffle", "orthogonal", "untied"]
OUTPUT_FORMS: tuple[OutputForm, ...] = get_args(OutputForm)


def shuffle_shape(dim: int) -> tuple[int, int]:
    """(a, b) with a · b = dim, a being the largest divisor of `dim` that is at most √dim."""
    rows = next(rows for rows in range(math.isqrt(dim), 0, -1) if dim % rows == 0)
    return rows, dim // rows


def check_output(output: str, dim: int) -> None:
    """A form that exists, and exists for this width.

    Raises:
        ValueError: says what was expected, what came, and which form to take instead.
    """
    if output not in OUTPUT_FORMS:
        raise ValueError(f"output: expected one of {', '.join(OUTPUT_FORMS)}, got {output!r}")
    if output == "swap" and dim % 2:
        raise ValueError(
            f"output 'swap': expected an even embedding_dim, whose halves are swapped, got {dim}; "
            "take 'shuffle' or 'orthogonal', or make the width even"
        )
    if output == "shuffle" and shuffle_shape(dim)[0] == 1:
        raise ValueError(
            f"output 'shuffle': expected an embedding_dim with a divisor between 1 and itself, got "
            f"{dim}, of which no matrix can be made to transpose; take 'orthogonal', or another "
            "width"
        )


def permute(table: Float[Tensor, "*rows dim"], output: OutputForm) -> Float[Tensor, "*rows dim"]:
    """S of each row for the forms without parameters; the others are left as they are."""
    if output == "swap":
        return _swap(table)
    if output == "shuffle":
        return _transpose(table, *shuffle_shape(table.shape[-1]))
    return table


def unpermute(
    hidden: Float[Tensor, "*batch dim"], output: OutputForm
) -> Float[Tensor, "*batch dim"]:
    """S⁻¹ of each hidden state, the inverse of `permute`."""
    if output == "swap":
        return _swap(hidden)
    if output == "shuffle":
        rows, columns = shuffle_shape(hidden.shape[-1])
        return _transpose(hidden, columns, rows)
    return hidden


def _swap(x: Tensor) -> Tensor:
    # Not roll, for which sharded tensors have no rule.
    first, second = x.chunk(2, -1)
    return torch.cat((second, first), -1)


def _transpose(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.unflatten(-1, (rows, columns)).transpose(-1, -2).flatten(-2)
