"""The layers beside torch's own: the same numbers where the cell is the same."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ropewalk.blocks.recurrent import ParallelGRU, ParallelLSTM, ParallelRNN

PAIRS = {
    "gru": (nn.GRU, ParallelGRU, ParallelGRU.from_gru, lambda layer: layer.to_gru()),
    "lstm": (nn.LSTM, ParallelLSTM, ParallelLSTM.from_lstm, lambda layer: layer.to_lstm()),
    "rnn": (nn.RNN, ParallelRNN, ParallelRNN.from_rnn, lambda layer: layer.to_rnn()),
}
every_kind = pytest.mark.parametrize("kind", PAIRS)
DENSE = {"structure": "dense"}


def flat(x):
    """Tensors of nested tuples."""
    if isinstance(x, PackedSequence):
        return [x.data]
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]


def close(got, expected, atol=1e-5):
    for one, other in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


def state_for(kind, layers, batch=3):
    parts = tuple(torch.randn(layers, batch, 5).requires_grad_() for _ in range(2))
    return parts if kind == "lstm" else parts[0]


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["steps", "batch first", "single", "packed", "unsorted"])
@pytest.mark.parametrize("method", ["auto", "newton"])
def test_a_dense_layer_is_torchs(kind, bidirectional, bias, form, method):
    torch.manual_seed(0)
    make, parallel, *_ = PAIRS[kind]
    sizes = (4, 5, 2)
    named = {"bias": bias, "bidirectional": bidirectional, "batch_first": form == "batch first"}
    theirs = make(*sizes, **named)
    ours = parallel(*sizes, **named, **DENSE, method=method)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    data, state = torch.randn(9, 3, 4, requires_grad=True), state_for(kind, 2 * ours.directions)
    given = data
    if form == "batch first":
        given = data.transpose(0, 1)
    elif form == "single":
        given, state = data[:, 0], state_for(kind, 2 * ours.directions, 1)
        state = tuple(s[:, 0] for s in state) if kind == "lstm" else state[:, 0]
    elif form != "steps":
        lengths = [9, 4, 1] if form == "packed" else [4, 9, 4]
        given = pack_padded_sequence(data, torch.tensor(lengths), enforce_sorted=form == "packed")
    leaves = [data, *(s for s in flat(state))]

    def gradients(module, found):
        loss = sum(x.square().sum() for x in flat(found))
        return torch.autograd.grad(loss, [*leaves, *module.parameters()], retain_graph=True)

    for hx in (None, state):
        found, expected = ours(given, hx), theirs(given, hx)
        close(found, expected)
        if hx is None:
            continue
        torch.testing.assert_close(
            gradients(ours, found), gradients(theirs, expected), rtol=1e-4, atol=1e-4
        )


@every_kind
def test_packed_results_have_torchs_form(kind):
    make, _, take, _ = PAIRS[kind]
    theirs = make(4, 5, bidirectional=True)
    ours = take(theirs)
    packed = pack_padded_sequence(
        torch.randn(6, 3, 4), torch.tensor([2, 6, 5]), enforce_sorted=False
    )
    for found, expected in zip(ours(packed)[0], theirs(packed)[0], strict=True):
        torch.testing.assert_close(found, expected)
    lengths = pad_packed_sequence(ours(packed)[0])[1]
    assert lengths.tolist() == [2, 6, 5]


@every_kind
def test_dropout_is_drawn_as_torchs(kind):
    make, _, take, _ = PAIRS[kind]
    theirs = make(4, 5, 3, dropout=0.5)
    ours, inputs = take(theirs), torch.randn(7, 2, 4)
    torch.manual_seed(3)
    expected = theirs(inputs)
    torch.manual_seed(3)
    close(ours(inputs), expected, atol=0)
    close(ours.eval()(inputs), theirs.eval()(inputs), atol=0)


@every_kind
def test_from_torch_and_back(kind):
    make, _, take, give = PAIRS[kind]
    torch.manual_seed(0)
    theirs = make(4, 5, 2, bidirectional=True, batch_first=True, dropout=0.1, dtype=torch.float64)
    theirs.eval().weight_hh_l0.requires_grad_(False)
    before = copy.deepcopy(theirs.state_dict())
    ours = take(theirs)
    assert not ours.training
    assert (ours.batch_first, ours.dropout, ours.bidirectional) == (True, 0.1, True)
    back = give(ours)
    assert type(back) is make
    assert not back.training
    for module in (ours, back):
        frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
        assert frozen == ["weight_hh_l0"]
        torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    torch.testing.assert_close(theirs.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gru", "rnn"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("structure", ["diagonal", "dense"])
@pytest.mark.parametrize("bounded", [False, True])
def test_every_layer_that_torch_has_becomes_it(kind, bias, structure, bounded):
    torch.manual_seed(0)
    _, parallel, take, give = PAIRS[kind]
    ours = parallel(4, 5, 2, bias=bias, bidirectional=True, structure=structure, bounded=bounded)
    inputs = torch.randn(12, 3, 4)
    theirs = give(ours)
    close(ours(inputs), theirs(inputs))
    again = take(theirs, structure=structure)
    assert not again.options["bounded"]
    close(again(inputs), theirs(inputs))


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_only_diagonal_matrices_make_a_diagonal_layer(kind):
    make, _, take, _ = PAIRS[kind]
    theirs = make(4, 5)
    with pytest.raises(ValueError, match="weight_hh_l0: expected diagonal matrices"):
        take(theirs, structure="diagonal")


def test_what_torch_does_not_have_is_refused():
    with pytest.raises(ValueError, match="coupled gates and peepholes"):
        ParallelLSTM(3, 4).to_lstm()
    for layer in (ParallelGRU(3, 4, mode=2), ParallelRNN(3, 4, mode=2)):
        give = layer.to_gru if isinstance(layer, ParallelGRU) else layer.to_rnn
        with pytest.raises(ValueError, match="expected mode='converged', got 2"):
            give()
    with pytest.raises(ValueError, match="expected mode='converged', got 2"):
        ParallelLSTM(3, 4, mode=2, **DENSE).to_lstm()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected proj_size=0, got 2"):
        ParallelLSTM.from_lstm(nn.LSTM(3, 4, proj_size=2))
    with pytest.raises(ValueError, match="proj_size: expected 0"):
        ParallelLSTM(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="expected 'tanh', got 'relu'"):
        ParallelRNN.from_rnn(nn.RNN(3, 4, nonlinearity="relu"))
    with pytest.raises(ValueError, match="expected 'tanh', got 'relu'"):
        ParallelRNN(3, 4, nonlinearity="relu")
    with pytest.raises(ValueError, match="bounded: expected False with structure='dense'"):
        ParallelLSTM(3, 4, structure="dense", bounded=True)
    for take, other in (
        (ParallelGRU.from_gru, nn.LSTM(3, 4)),
        (ParallelLSTM.from_lstm, nn.GRU(3, 4)),
        (ParallelRNN.from_rnn, nn.GRU(3, 4)),
    ):
        with pytest.raises(TypeError, match="expected an nn"):
            take(other)


@pytest.mark.parametrize("kind", PAIRS)
def test_positional_arguments_are_torchs(kind):
    make, parallel, *_ = PAIRS[kind]
    positional = (4, 5, 2, *(["tanh"] if kind == "rnn" else []), False, True, 0.25, True)
    theirs, ours = make(*positional), parallel(*positional, **DENSE)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_unidirectional_diagonal_layer_imports_through_one_matrix():
    """torch's GRU with diagonal matrices, trained further as the diagonal cell."""
    torch.manual_seed(0)
    theirs = nn.GRU(3, 4)
    with torch.no_grad():
        mask = torch.eye(4).repeat(3, 1)
        theirs.get_parameter("weight_hh_l0").mul_(mask)
    ours = ParallelGRU.from_gru(theirs, structure="diagonal")
    assert ours.weight_hh_l0.shape == (3, 4)
    inputs, state = torch.randn(20, 2, 3), torch.randn(1, 2, 4)
    close(ours(inputs, state), theirs(inputs, state))
    loss, exact = ours(inputs)[0].square().sum(), theirs(inputs)[0].square().sum()
    (grad,) = torch.autograd.grad(loss, [ours.weight_hh_l0])
    (full,) = torch.autograd.grad(exact, [theirs.get_parameter("weight_hh_l0")])
    diagonals = full.unflatten(0, (3, 4)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(grad, diagonals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_effective_weights(kind):
    """Those that a step takes, by name; the only ones where they are not made of others."""
    _, parallel, _, give = PAIRS[kind]
    for options in ({}, {"bounded": False}, DENSE, {**DENSE, "bounded": True}):
        if kind == "lstm" and options.get("bounded") and "structure" in options:
            continue
        torch.manual_seed(0)
        layer = parallel(4, 5, 2, bidirectional=True, **options)
        found = layer.effective_weights(1, reverse=True)
        names = {
            "gru": ["W_r", "W_z", "W_n", "b_n"],
            "rnn": ["A"],
            "lstm": ["W_i", "W_f", "W_g", "W_o"]
            if options
            else ["a_f", "a_z", "a_o", "c_f", "c_o"],
        }
        if kind != "lstm" or options in ({}, DENSE):
            assert list(found) == names[kind]
        weights = [w for name, w in found.items() if name != "b_n"]
        own = layer.get_parameter("weight_hh_l1_reverse")
        made = torch.cat(weights) if weights[0].ndim == 2 else torch.stack(weights)
        assert torch.equal(made, own) != layer.options["bounded"]
        if kind != "lstm" or "structure" in options:
            theirs = give(layer).get_parameter("weight_hh_l1_reverse")
            square = [w if w.ndim == 2 else torch.diag(w) for w in weights]
            torch.testing.assert_close(torch.cat(square), theirs)
        (grad,) = torch.autograd.grad(made.square().sum(), own)
        assert grad.abs().min() > 0
        bad = ((2, False, ValueError), (-1, False, ValueError), (0, 1, TypeError))
        for index, reverse, error in bad:
            with pytest.raises(error, match=r"effective_weights"):
                layer.effective_weights(index, reverse=reverse)
    with pytest.raises(ValueError, match="expected reverse=False"):
        parallel(4, 5).effective_weights(reverse=True)
