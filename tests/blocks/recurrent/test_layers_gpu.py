"""The layers on a device: as on the CPU, and dense ones as torch's there."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from ropewalk.blocks.recurrent import LRU, SLRU, MinGRU, ParallelGRU, ParallelLSTM, ParallelRNN

pytestmark = pytest.mark.gpu

LAYERS = {"gru": ParallelGRU, "lstm": ParallelLSTM, "rnn": ParallelRNN}
every_kind = pytest.mark.parametrize("kind", LAYERS)


def flat(x):
    """Tensors of nested tuples."""
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]


def results(layer, inputs):
    """Outputs, last states and gradients, on the CPU."""
    found = flat(layer(inputs))
    loss = sum(x.square().sum() for x in found)
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    return [x.detach().cpu() for x in (*found, *gradients)]


@every_kind
@pytest.mark.parametrize("packed", [False, True])
def test_a_diagonal_layer_is_that_of_the_cpu(kind, packed):
    torch.manual_seed(0)
    layer = LAYERS[kind](8, 24, 2, bidirectional=True)
    pieces = [torch.randn(length, 8) for length in (70, 33, 70)]
    given = pack_sequence(pieces, enforce_sorted=False) if packed else torch.stack(pieces[::2], 1)

    def run(device):
        found, last = copy.deepcopy(layer).to(device)(given.to(device))
        return [x.cpu() for x in flat((found.data, last))]

    for ours, theirs in zip(run("cuda"), run("cpu"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if not packed:
        on_device = results(copy.deepcopy(layer).cuda(), given.cuda())
        torch.testing.assert_close(on_device, results(layer, given), rtol=1e-3, atol=1e-3)


@every_kind
@pytest.mark.parametrize(("packed", "compiled"), [(False, False), (True, False), (False, True)])
def test_a_dense_layer_is_torchs(kind, packed, compiled):
    torch.manual_seed(0)
    make = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[kind]
    theirs = make(8, 24, 2, bidirectional=True).cuda()
    take = {"gru": "from_gru", "lstm": "from_lstm", "rnn": "from_rnn"}[kind]
    ours = getattr(LAYERS[kind], take)(theirs)
    pieces = [torch.randn(length, 8, device="cuda") for length in (9, 4, 9)]
    given = pack_sequence(pieces, enforce_sorted=False) if packed else torch.stack(pieces[::2], 1)
    run = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of weights that lie apart
        (found, last), (exact, end) = run(given), theirs(given)
        found.data.square().sum().backward()
    exact.data.square().sum().backward()
    pairs = zip(flat((found.data, last)), flat((exact.data, end)), strict=True)
    gradients = (
        (p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    for mine, other in (*pairs, *gradients):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", [LRU, SLRU, MinGRU])
def test_a_linear_recurrence_is_that_of_the_cpu(kind):
    torch.manual_seed(0)
    layer, inputs = kind(8, 24), torch.randn(3, 200, 8)
    on_device = results(copy.deepcopy(layer).cuda(), inputs.cuda())
    torch.testing.assert_close(on_device, results(layer, inputs), rtol=1e-3, atol=1e-3)
