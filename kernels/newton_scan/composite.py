"""The recurrence step by step in ordinary torch, for torch.func and its transforms."""

import torch
from torch import Tensor

from ropewalk.kernels.newton_scan.problem import Problem, Scanned


def composite_scan(problem: Problem) -> Scanned:
    """States; no iterations. Sequences that are packed are cut apart, which reads their lengths."""
    p = problem
    x, w = p.inputs.to(p.dtype), p.weights.to(p.dtype)
    if p.initial is None:
        initial = x.new_zeros(p.sequences, *p.state_shape)
    else:
        initial = p.initial.to(p.dtype)
    if p.cu_seqlens is None:
        states = _steps(p, x, w, initial)
    else:
        parts = x.split(p.cu_seqlens.diff().tolist(), dim=1)
        states = torch.cat(
            [_steps(p, part, w, initial[i : i + 1]) for i, part in enumerate(parts)], dim=1
        )
    none = torch.zeros(p.sequences, p.channels, dtype=torch.float32, device=x.device)
    return Scanned(states.to(p.inputs.dtype), none.int(), none)


def _steps(p: Problem, x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    states = []
    for t in range(x.shape[1]):
        h = p.formulas.step(x[:, t], h, w)
        states.append(h)
    return torch.stack(states, dim=1) if states else x.new_empty(x.shape[0], 0, *p.state_shape)
