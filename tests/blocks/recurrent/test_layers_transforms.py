"""The layers under what torch does to modules: replicas, functional calls, parametrisations."""

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from ropewalk.blocks.recurrent import ParallelGRU, ParallelLSTM, ParallelRNN

LAYERS = {"gru": ParallelGRU, "lstm": ParallelLSTM, "rnn": ParallelRNN}
WAYS = {
    "diagonal": {},
    "dense": {"structure": "dense", "bounded": False},
    "solved": {"structure": "dense", "bounded": False, "method": "newton"},
    "iterated": {"mode": 5},
}
every_kind = pytest.mark.parametrize("kind", LAYERS)
every_way = pytest.mark.parametrize("way", WAYS)


def make(kind, way, **options):
    torch.manual_seed(0)
    return LAYERS[kind](3, 5, 2, **WAYS[way], **options), torch.randn(7, 2, 3)


def gradients(layer, parameters, inputs):
    """After the layer has its own parameters again."""
    outputs = torch.func.functional_call(layer, parameters, (inputs,))[0]
    return torch.autograd.grad(outputs.square().sum(), list(parameters.values()))


@every_way
@every_kind
def test_gradients_of_a_functional_call_are_those_of_its_parameters(kind, way):
    layer, inputs = make(kind, way)
    parameters = {n: torch.randn_like(p).requires_grad_() for n, p in layer.named_parameters()}
    found = gradients(layer, parameters, inputs)
    layer.load_state_dict(parameters)
    expected = torch.autograd.grad(layer(inputs)[0].square().sum(), list(layer.parameters()))
    for name, one, other in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)


@every_way
@every_kind
def test_a_replica_has_its_own_parameters(kind, way):
    """As `nn.DataParallel` makes them: copies, of which gradients reach the parameters."""
    layer, inputs = make(kind, way)
    replica = layer._replicate_for_data_parallel()
    copies = {name: 2 * p for name, p in layer.named_parameters()}
    for name, copied in copies.items():
        setattr(replica, name, copied)
    before = layer(inputs)[0]
    expected = torch.func.functional_call(layer, copies, (inputs,))[0]
    assert (before - expected).abs().max() > 1e-3
    torch.testing.assert_close(replica(inputs)[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(layer(inputs)[0], before, rtol=0, atol=0)


@every_way
@every_kind
def test_parametrised_weights(kind, way):
    layer, inputs = make(kind, way)
    expected = layer(inputs)[0]
    weight_norm(layer, "weight_hh_l0")
    outputs = layer(inputs)[0]
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    outputs.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
