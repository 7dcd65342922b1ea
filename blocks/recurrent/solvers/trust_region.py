"""One step of Levenberg–Marquardt on all states at once, by a Kalman filter and smoother (ELK).

With e_t = f(h^k_{t−1}, x_t) − h^k_t the step is h^k + d, where d minimises

    Σ_t |d_t − J_t d_{t−1} − e_t|² + λ Σ_t |d_t|²,    d_0 = 0

the most probable path of d_t = J_t d_{t−1} + e_t + N(0, 1), of which 0 = d_t + N(0, 1/λ) has been
observed. J is diagonal here (quasi-ELK), so every channel has a scalar filter:

    p⁻_t = J_t² P_{t−1} + 1,    P_t = p⁻_t / (1 + λ p⁻_t)            variances, P_0 = 0
    m_t = (J_t m_{t−1} + e_t) / (1 + λ p⁻_t)                         filtered means
    d_t = m_t + G_t (d_{t+1} − J_{t+1} m_t − e_{t+1}),    G_t = P_t J_{t+1} / p⁻_{t+1}    smoothed

Means are linear scans. The variance is a Möbius map of the one before, P ↦ (J²P + 1)/(λJ²P + 1 +
λ), and maps are composed as 2×2 matrices; these are positive, and only their directions count, so
that they are normalised whenever two are multiplied. Coefficients of the means are J/(1 + λp⁻),
which stays below about 1/J where J is large: nothing overflows. λ → 0 is quasi-Newton; a large λ
hardly moves. As time has to be scanned in a form that is not linear, this is doubling: log₂ T
rounds.

Source: Gonzalez et al., arXiv 2407.19115; Särkkä & García-Fernández, arXiv 1905.13002 (parallel
filters).
"""

import torch
from torch import Tensor

from ropewalk.blocks.recurrent.solvers.layout import Layout
from ropewalk.kernels.linear_scan import linear_scan


def trust_region_step(
    layout: Layout, jacobian: Tensor, guess: Tensor, made: Tensor, damping: Tensor
) -> Tensor:
    """The next guess h^k + d.

    Args:
        layout: how the sequences lie.
        jacobian: J_t, diagonal, (batch, time, *state_shape).
        guess: h^k.
        made: f(h^k_{t−1}, x_t).
        damping: λ > 0, a number or one for each chain, (batch, 1, *state_shape).
    """
    shape = guess.shape
    j, error = jacobian.flatten(2), (made - guess).flatten(2)
    damping = damping.flatten(2) if damping.ndim else damping
    j = layout.without_first(j)  # d_0 = 0: the first step of a sequence knows no state before it
    before = layout.previous(_variances(j * j, damping))
    predicted = j * j * before + 1
    shrink = 1 / (1 + damping * predicted)
    cu = layout.cu_seqlens
    filtered = linear_scan(shrink * j, shrink * error, cu_seqlens=cu)
    j_next, error_next = layout.next(j), layout.next(error)
    gain = predicted * shrink * j_next / _next_predicted(layout, predicted)
    offset = filtered - gain * (j_next * filtered + error_next)
    smoothed = linear_scan(gain, offset, reverse=True, cu_seqlens=cu)
    return guess + smoothed.view(shape)


def _next_predicted(layout: Layout, predicted: Tensor) -> Tensor:
    # After the last step of a sequence there is none, and the gain is 0 whatever divides it.
    return layout.next(predicted).clamp_min(1)


def _variances(squared: Tensor, damping: Tensor) -> Tensor:
    """P_t of all steps, from P_0 = 0, by doubling over products of Möbius maps."""
    # Rows of the matrices; (numerator, denominator) of P.
    a, b = squared, torch.ones_like(squared)
    c, d = damping * squared, (1 + damping).expand_as(squared)
    reach = 1
    while reach < squared.shape[1]:
        a1, b1, c1, d1 = (x[:, reach:] for x in (a, b, c, d))
        a0, b0, c0, d0 = (x[:, :-reach] for x in (a, b, c, d))
        product = (a1 * a0 + b1 * c0, a1 * b0 + b1 * d0, c1 * a0 + d1 * c0, c1 * b0 + d1 * d0)
        size = torch.maximum(torch.maximum(*product[:2]), torch.maximum(*product[2:]))
        a, b, c, d = (
            torch.cat([old[:, :reach], new / size], dim=1)
            for old, new in zip((a, b, c, d), product, strict=True)
        )
        reach *= 2
    return b / d
