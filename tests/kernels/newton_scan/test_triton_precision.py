"""On a device, at the sizes of models: as exact as steps in torch, and reports that are true."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.newton_scan import newton_scan, triton
from ropewalk.kernels.newton_scan.problem import Options, Problem

pytestmark = pytest.mark.gpu

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
# Batch, time, channels.
SIZES = {"many chains": (8, 512, 2048), "few chains": (1, 2048, 64), "odd": (3, 515, 77)}
ALGORITHMS = ["newton", "sequential", "auto"]


def floor_of(dtype: torch.dtype) -> float:
    """What single results are rounded by, of which torch's may be exact by luck."""
    return max(1e-5, torch.finfo(dtype).eps)


def drawn_for(make: Callable[..., Any], cell: str, size: tuple[int, int, int], **how: Any) -> Any:
    return make(cell, *size, **how).to(dtype=FP32, device="cuda")


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", SIZES)
def test_as_exact_as_steps_in_torch(
    size: str, algorithm: str, dtype: torch.dtype, cell: str,
    make_recurrence: Callable[..., Any], recurrence_oracle: Callable[..., Tensor],
    as_exact_as: Callable[..., None],
) -> None:  # fmt: skip
    given = drawn_for(make_recurrence, cell, SIZES[size]).to(dtype=dtype)
    expected = recurrence_oracle(exact := given.to(dtype=torch.float64))
    v = torch.randn_like(expected)

    def gradients(states: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(states, leaves, v.to(states.dtype)))

    truth = [expected.detach(), *gradients(expected, exact.tensors)]
    by_steps = recurrence_oracle(given)
    peer = [by_steps.detach(), *gradients(by_steps, given.tensors)]
    found = newton_scan(
        given.inputs, given.weights, given.initial,
        cell=cell, algorithm=algorithm, backend="triton",
    )  # fmt: skip
    ours = [found.states.detach(), *gradients(found.states, given.tensors)]
    for values in zip(peer, ours, truth, strict=True):
        as_exact_as(*values, floor=floor_of(dtype))


@pytest.mark.parametrize("window", [None, 24, 1000])
def test_steep_cells_match_steps_in_turn(
    window: int | None, cell: str, make_recurrence: Callable[..., Any]
) -> None:
    """Weights of a standard deviation of 2; what both found, and what is told about it, is true."""
    r = drawn_for(make_recurrence, cell, (1, 4096, 32), std=2.0)
    assert r.initial is not None
    problem = Problem(r.inputs.detach(), r.weights.detach(), r.initial.detach(), cell)
    found = triton.forward(problem, Options("newton", window))
    in_turn = triton.forward(problem, Options("sequential"))
    assert (found.residual <= 2e-6).all()
    assert (found.iterations >= 1).all()
    if window is not None:
        assert (found.iterations <= window).all()
    # Chains that are chaotic part from each other by whatever rounds them; most are not.
    apart = (found.states - in_turn.states).abs().flatten(0, -2).amax(0)
    assert apart.median() <= 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_packed_sequences_of_all_lengths(
    algorithm: str, make_recurrence: Callable[..., Any], recurrence_oracle: Callable[..., Tensor]
) -> None:
    bounds = [0, 0, 1, 700, 701, 701, 1031]
    r = drawn_for(make_recurrence, "gru", (1, bounds[-1], 40), sequences=len(bounds) - 1)
    found = newton_scan(
        r.inputs, r.weights, r.initial, cell="gru", algorithm=algorithm,
        cu_seqlens=torch.tensor(bounds, device="cuda"), backend="triton",
    )  # fmt: skip
    expected = recurrence_oracle(exact := r.to(dtype=torch.float64), bounds=bounds)
    torch.testing.assert_close(found.states.double(), expected, rtol=0, atol=1e-5)
    truths = torch.autograd.grad(expected.sum(), exact.tensors)
    ours = torch.autograd.grad(found.states.sum(), r.tensors)
    for x, truth in zip(ours, truths, strict=True):
        limit = 1e-4 * truth.abs().max().item()
        torch.testing.assert_close(x.double(), truth, rtol=0, atol=limit)


def test_results_repeat_bit_for_bit(cell: str, make_recurrence: Callable[..., Any]) -> None:
    r = drawn_for(make_recurrence, cell, (2, 1000, 64))

    def once() -> list[Tensor]:
        found = newton_scan(
            r.inputs, r.weights, r.initial, cell=cell, algorithm="newton", backend="triton"
        )
        return [*found, *torch.autograd.grad(found.states.sum(), r.tensors)]

    for one, other in zip(once(), once(), strict=True):
        assert torch.equal(one, other)
