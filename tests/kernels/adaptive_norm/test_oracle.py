"""The chain equals the oracle: all of its parts, sizes, layouts and dtypes; and its identities."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional

from ropewalk.kernels.adaptive_norm import (
    NORMS,
    adaptive_norm,
    gated_adaptive_norm,
    gated_residual,
)
from ropewalk.kernels.adaptive_norm.reference import runs

FORMS = {
    "all": {},
    "affine": {"affine": "weight bias"},
    "weight": {"affine": "weight", "modulation": "gate scale"},
    "bias": {"affine": "bias", "modulation": "gate shift"},
    "scale over a bias": {"affine": "bias", "modulation": "scale"},
    "no gate": {"modulation": "shift scale"},
    "no modulation": {"modulation": "gate"},
    "nothing": {"modulation": ""},
    "no branch": {"branch": False},
    "bare norm": {"branch": False, "modulation": ""},
    "one row for all": {"shared": True, "affine": "weight"},
}


def run(case, backend="auto"):
    return case.run(backend)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_oracle(sizes, form, norm, make_case, chain_oracle, with_gradients):
    case = make_case(sizes, norm=norm, **FORMS[form]).to(torch.float64)
    torch.testing.assert_close(
        with_gradients(run, case), with_gradients(chain_oracle, case), rtol=1e-10, atol=1e-11
    )


@pytest.mark.parametrize("gated", [True, False])
def test_the_sum_without_a_norm(sizes, gated, make_case, chain_oracle, with_gradients):
    case = make_case(sizes, norm=None, modulation="gate" if gated else "").to(torch.float64)
    torch.testing.assert_close(with_gradients(run, case), with_gradients(chain_oracle, case))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("affine", ["", "weight bias"])
def test_runs_of_samples(norm, affine, make_case, chain_oracle, with_gradients, monkeypatch):
    """Samples that are computed alone, and a few at a time with a rest, as long ones are."""
    case = make_case((5, 6, 8), norm=norm, affine=affine).to(torch.float64)
    expected = with_gradients(chain_oracle, case)
    monkeypatch.setattr(runs, "is_one_run", lambda p, in_place=False: False)
    for alone in (1, 1000):
        monkeypatch.setattr(runs, "ELEMENTS", 2 * 6 * 8)
        monkeypatch.setattr(runs, "ALONE", alone)
        torch.testing.assert_close(with_gradients(run, case), expected)


def plain(case):
    """The same in plain torch, rounded wherever torch rounds."""
    c = case
    gate, shift, scale = (
        None if row is None else row[:, None] for row in (c.gate, c.shift, c.scale)
    )
    residual = c.x if c.branch is None else c.x + gate * c.branch
    shape = residual.shape[2:]
    if c.norm == "layer":
        normed = functional.layer_norm(residual, shape, c.weight, c.bias, c.eps)
    else:
        normed = functional.rms_norm(residual, shape, c.weight, c.eps)
    y = normed * (1 + scale) + shift
    return [y] if c.branch is None else [residual, y]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 17, 72), (2, 300, 512)], ids=str)
def test_as_exact_as_plain_torch(
    size, dtype, norm, make_case, chain_oracle, with_gradients, as_exact_as
):
    case = make_case(size, norm=norm).to(dtype)
    truth = with_gradients(chain_oracle, case.to(torch.float64))
    peer, ours = (with_gradients(function, case) for function in (plain, run))
    for name, value in ours.items():
        assert value.dtype == dtype
        as_exact_as(peer[name], value, truth[name])


@pytest.mark.parametrize("norm", NORMS)
def test_rows_in_float32(norm, make_case, chain_oracle, with_gradients, as_exact_as):
    """Half precision of the streams alone; every gradient has the dtype of what it belongs to."""
    case = make_case((3, 9, 20), norm=norm, affine="weight").to(torch.bfloat16, rows=torch.float32)
    found = with_gradients(run, case)
    truth = with_gradients(chain_oracle, case.to(torch.float64))
    peer = with_gradients(plain, case.to(torch.bfloat16))
    for name, leaf in zip(case.names, case.leaves, strict=True):
        assert found[f"gradient of {name}"].dtype == leaf.dtype
    for name, value in found.items():
        as_exact_as(peer[name], value, truth[name])


def test_the_residual_is_what_the_norm_sees(make_case):
    """One op is two: forward, bit for bit where nothing else rounds."""
    case = make_case((3, 9, 20)).to(torch.bfloat16)
    gated = (case.x, case.branch, case.gate)
    residual, y = gated_adaptive_norm(*gated, case.shift, case.scale)
    assert torch.equal(residual, gated_residual(*gated))
    assert torch.equal(y, adaptive_norm(residual, case.shift, case.scale))


@pytest.mark.parametrize("norm", NORMS)
def test_packed_samples_are_each_alone(norm, make_case):
    lengths = (4, 1, 8)
    case = make_case((1, 13, 9), lengths, norm=norm, affine="weight bias")
    together = case.run()
    start = 0
    for sample, length in enumerate(lengths):
        tokens = slice(start, start + length)
        rows = {name: getattr(case, name)[sample, None] for name in ("gate", "shift", "scale")}
        alone = replace(
            case, x=case.x[:, tokens], branch=case.branch[:, tokens], cu_seqlens=None, **rows
        )
        for whole, part in zip(together, alone.run(), strict=True):
            torch.testing.assert_close(whole[:, tokens], part)
        start += length


def test_a_norm_does_not_see_the_scale_of_its_input(make_case):
    case = make_case((2, 5, 12), branch=False)
    for norm in NORMS:
        call = partial(adaptive_norm, shift=case.shift, scale=case.scale, norm=norm, eps=0.0)
        torch.testing.assert_close(call(7.0 * case.x), call(case.x))
    moved = adaptive_norm(case.x + 3.0, case.shift, case.scale, eps=0.0)
    torch.testing.assert_close(moved, adaptive_norm(case.x, case.shift, case.scale, eps=0.0))


def test_a_gate_of_zero_leaves_the_stream(make_case):
    """As blocks begin to learn: the branch gets no gradient, the gate does."""
    case = make_case((2, 5, 12)).to(torch.float32)
    case = replace(case, gate=torch.zeros_like(case.gate).requires_grad_())
    residual, _ = case.run()
    assert torch.equal(residual, case.x)
    branch, gate = torch.autograd.grad(residual.square().sum(), (case.branch, case.gate))
    assert not branch.any()
    torch.testing.assert_close(gate, (2 * case.x * case.branch).sum(1))


LAYOUTS = {
    "tokens last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "a part of wider rows": lambda x: torch.cat((x, x), 2)[..., : x.shape[2]],
    "every second token": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every second column": lambda x: x.repeat_interleave(2, 2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_layouts(layout, norm, make_case, with_gradients):
    """Of the streams, and of the gradients that come."""
    case = make_case((3, 5, 8), norm=norm)
    change = LAYOUTS[layout]
    dense = case.to(torch.float64)
    other = replace(dense, x=change(dense.x), branch=change(dense.branch))
    assert not other.x.is_contiguous()
    expected, found = (
        with_gradients(lambda c: [change(value) for value in c.run()], given)
        for given in (dense, replace(dense, **vars(other)))
    )
    assert all(value.is_contiguous() for value in other.run())
    found = {name: found[name] for name in ("first", "second")}
    torch.testing.assert_close(found, {name: expected[name] for name in found})
    upstream = change(torch.randn_like(case.x))
    gradients = [
        torch.autograd.grad(given.run()[1], dense.leaves, upstream) for given in (dense, other)
    ]
    torch.testing.assert_close(*gradients)


def test_a_gradient_of_one_number_for_all(make_case):
    """What a sum gives: strides of 0; and only one of two results is used."""
    case = make_case((3, 5, 8)).to(torch.float64)
    for index in (0, 1):
        result = case.run()[index]
        expanded = torch.autograd.grad(result.sum(), case.leaves, allow_unused=True)
        result = case.run()[index]
        dense = torch.autograd.grad(result, case.leaves, torch.ones_like(result), allow_unused=True)
        torch.testing.assert_close(expanded, dense)
        assert [grad is None for grad in dense] == [False] * 3 + [index == 0] * 2


@pytest.mark.parametrize("wanted", ["x", "branch", "gate", "shift", "scale", "weight", "bias"])
def test_one_gradient_at_a_time(wanted, make_case, chain_oracle):
    case = make_case((3, 5, 8), affine="weight bias")
    getattr(case, wanted).requires_grad_()
    results = [torch.autograd.grad(f(case)[1].sin().sum(), getattr(case, wanted)) for f in
               (run, chain_oracle)]  # fmt: skip
    torch.testing.assert_close(*results)
