"""What a head does to its vocabulary: how sure it is, and how much its rows point the same way.

    entropy      H = lse − Σ_v p_v z_v, the mean over hidden states, in nats; ln V is uniform
    top-1 mass   max_v p_v, the mean over hidden states
    anisotropy   the mean cosine between different rows of the table (arXiv 1909.00512 §4)

The first two take a pass over tiles of tokens × vocabulary with a running maximum, so the logits
are never held. For the third, no V × V matrix is needed: the cosines of all pairs of unit rows u
sum to ‖Σ u‖², of which V are those of rows with themselves.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.heads.validation import require_finite
from ropewalk.kernels.autocast import suspended

# Tiles of at most so many logits: 16 MB in float32.
_TILE_TOKENS = 1024
_TILE_COLUMNS = 4096


class HeadStatistics(NamedTuple):
    """Numbers that describe a head; floats, on the CPU.

    Attributes:
        entropy: of the predictions, in nats, the mean over hidden states.
        top1_mass: the greatest probability, the mean over hidden states.
        anisotropy: the mean cosine between different rows of the table; 0 where directions are
            independent, 1 where all are the same. NaN for a table of one row.
    """

    entropy: float
    top1_mass: float
    anisotropy: float


@torch.no_grad()
def head_statistics(
    hidden: Float[Tensor, "*batch dim"],
    table: Float[Tensor, "vocabulary dim"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> HeadStatistics:
    """Entropy, top-1 mass and anisotropy of a head, without its logits.

    Args:
        hidden: hidden states as the head gets them, one at least.
        table: the output matrix, one row a token: `TiedEmbedding.output_matrix()`.
        bias: added to the logits; −∞ rules a token out, unless there is a soft cap.
        logit_scale: multiplies the logits.
        softcap: c of c · tanh(logits / c), after the scale.

    Returns:
        Three floats, computed in float32 (float64 for float64 tensors).

    Raises:
        ValueError: ranks, sizes, dtypes or devices that do not fit, no hidden state, a soft cap
            that is not positive, or a scale that is not finite.
        TypeError: an argument of the wrong kind.
    """
    _check(hidden, table, bias)
    require_finite("head_statistics", logit_scale=logit_scale)
    if softcap is not None:
        require_positive("head_statistics", softcap=softcap)
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    entropy = torch.zeros((), dtype=torch.float64, device=hidden.device)
    top1_mass = torch.zeros_like(entropy)
    rows = hidden.reshape(-1, hidden.shape[-1])
    for tokens in rows.split(_TILE_TOKENS):
        # Not −∞, of which the first step would make 0 · ∞.
        least = torch.finfo(dtype).min
        maximum = torch.full((len(tokens),), least, dtype=dtype, device=hidden.device)
        total, weighted = torch.zeros_like(maximum), torch.zeros_like(maximum)
        for start in range(0, len(table), _TILE_COLUMNS):
            columns = slice(start, start + _TILE_COLUMNS)
            # Autocast would round the products to half.
            with suspended(hidden):
                logits = tokens.to(dtype) @ table[columns].to(dtype).mT
            if bias is not None:
                logits = logits + bias[columns].to(dtype)
            logits = logits * logit_scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            # Not −∞ either for a tile whose tokens are all ruled out: `maximum` is finite.
            larger = torch.maximum(maximum, logits.amax(-1))
            shrink = (maximum - larger).exp()
            above = logits - larger[:, None]
            mass = above.exp()
            # A token that a bias of −∞ rules out has no mass, and of 0 · ∞ would be made NaN.
            information = torch.where(mass > 0, mass * above, 0.0)
            # Of logits less their maximum, because a mean of large logits has lost its digits.
            weighted = shrink * (weighted + total * (maximum - larger)) + information.sum(-1)
            total = total * shrink + mass.sum(-1)
            maximum = larger
        entropy += (total.log() - weighted / total).double().sum()
        top1_mass += total.reciprocal().double().sum()
    return HeadStatistics(
        float(entropy / len(rows)), float(top1_mass / len(rows)), _anisotropy(table, dtype)
    )


def _anisotropy(table: Tensor, dtype: torch.dtype) -> float:
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    own = torch.zeros((), dtype=torch.float64, device=table.device)
    for rows in table.split(_TILE_COLUMNS):
        unit = torch.nn.functional.normalize(rows.to(dtype), dim=-1).double()
        total += unit.sum(0)
        # Not the number of rows: a row of zeros, such as padding, has no direction.
        own += unit.square().sum()
    pairs = len(table) * (len(table) - 1)
    return float((total.square().sum() - own) / pairs) if pairs else float("nan")


def _check(hidden: Tensor, table: Tensor, bias: Tensor | None) -> None:
    for name, x in (("hidden", hidden), ("table", table), ("bias", bias)):
        if not isinstance(x, Tensor) and not (x is None and name == "bias"):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name}: expected a floating-point dtype, got {x.dtype}; cast it")
        if x is not None and x.device != hidden.device:
            raise ValueError(
                f"{name}: expected on {hidden.device} as hidden is, got {x.device}; move it there"
            )
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(
            f"table: expected (vocabulary, dim) with one row at least, got {tuple(table.shape)}"
        )
    if hidden.ndim < 1 or hidden.shape[-1] != table.shape[1]:
        raise ValueError(
            f"hidden: expected (..., {table.shape[1]}) as the table's rows are, got "
            f"{tuple(hidden.shape)}; table is (vocabulary, dim), not transposed"
        )
    if hidden.numel() == 0:
        raise ValueError(f"hidden: expected one hidden state at least, got {tuple(hidden.shape)}")
    if bias is not None and bias.shape != table.shape[:1]:
        raise ValueError(
            f"bias: expected ({table.shape[0]},), one for each row of the table, got "
            f"{tuple(bias.shape)}"
        )
