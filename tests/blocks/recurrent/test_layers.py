"""ParallelGRU, ParallelLSTM, ParallelRNN: the whole sequence is the loop over `.step`."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, unpad_sequence

from ropewalk.blocks.recurrent import Newton, ParallelGRU, ParallelLSTM, ParallelRNN

LAYERS = {"gru": ParallelGRU, "lstm": ParallelLSTM, "rnn": ParallelRNN}
every_kind = pytest.mark.parametrize("kind", LAYERS)
# Sizes of input, hidden and stack; what differs from the defaults.
FORMS = {
    "diagonal": {},
    "diagonal free": {"bounded": False, "bias": False},
    "diagonal newton": {"method": "newton", "window": 5, "backend": "reference"},
    "diagonal in turn": {"method": "sequential"},
    "diagonal quasi": {"method": "quasi", "window": 8},
    "dense": {"structure": "dense", "bounded": True},
    "dense free": {"structure": "dense", "bias": False},
    "dense newton": {"structure": "dense", "method": Newton(), "window": 16},
}
every_form = pytest.mark.parametrize("form", FORMS)


def make(kind, form="diagonal", *sizes, **options):
    torch.manual_seed(0)
    options = {**FORMS[form], **options}
    if kind == "lstm" and options.get("structure") == "dense":
        options["bounded"] = None
    return LAYERS[kind](*(sizes or (3, 5, 2)), **options)


def states_for(layer, batch=2, dtype=torch.float32):
    torch.manual_seed(1)
    shape = (layer.num_layers * layer.directions, batch, layer.hidden_size)
    parts = tuple(torch.rand(shape, dtype=dtype) * 2 - 1 for _ in range(layer.parts))
    return parts if layer.parts == 2 else parts[0]


def flat(x):
    """Tensors of nested tuples."""
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]


def loop(layer, inputs, state=None):
    """Of (time, batch, dim)."""
    outputs = []
    for step in inputs:
        output, state = layer.step(step, state)
        outputs.append(output)
    return torch.stack(outputs), state


def close(got, expected, atol=1e-5):
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


@every_form
@every_kind
@pytest.mark.parametrize(("time", "batch", "given"), [(1, 1, True), (13, 2, False), (40, 3, True)])
def test_the_sequence_is_the_loop_over_steps(kind, form, time, batch, given):
    layer = make(kind, form)
    inputs, state = torch.randn(time, batch, 3), states_for(layer, batch) if given else None
    close(layer(inputs, state), loop(layer, inputs, state))


@every_form
@every_kind
def test_gradients_are_those_of_unrolled_steps(kind, form):
    layer = make(kind, form)
    inputs, state = torch.randn(11, 2, 3, requires_grad=True), states_for(layer)
    states = [s.requires_grad_() for s in flat(state)]
    leaves = [inputs, *states, *layer.parameters()]

    def gradients(run):
        loss = sum(x.square().sum() for x in flat(run(inputs, state)))
        return torch.autograd.grad(loss, leaves)

    ours = gradients(layer)
    theirs = gradients(lambda x, s: loop(layer, x, s))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("form", ["diagonal", "diagonal free", "dense newton"])
def test_gradcheck(kind, form):
    layer = make(kind, form, 2, 3, 1, dtype=torch.float64)
    state = states_for(layer, 2, torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    inputs = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    states = [s.requires_grad_() for s in flat(state)]

    def run(inputs, *given):
        parts, parameters = given[: layer.parts], given[layer.parts :]
        hx = parts if layer.parts == 2 else parts[0]
        parameters = dict(zip(names, parameters, strict=True))
        return tuple(flat(torch.func.functional_call(layer, parameters, (inputs, hx))))

    assert torch.autograd.gradcheck(run, (inputs, *states, *layer.parameters()))


@pytest.mark.parametrize("form", ["diagonal", "diagonal quasi", "dense", "dense newton"])
@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences_are_each_by_itself(kind, form, bidirectional, enforce_sorted):
    layer = make(kind, form, bidirectional=bidirectional)
    lengths = [9, 7, 7, 1] if enforce_sorted else [7, 1, 9, 7]
    pieces = [torch.randn(length, 3) for length in lengths]
    packed = pack_sequence(pieces, enforce_sorted=enforce_sorted)
    for state in (None, states_for(layer, 4)):
        outputs, last = layer(packed, state)
        assert torch.equal(outputs.batch_sizes, packed.batch_sizes)
        padded, found = pad_packed_sequence(outputs)
        assert found.tolist() == lengths
        for i, (piece, output) in enumerate(
            zip(pieces, unpad_sequence(padded, found), strict=True)
        ):
            parts = [] if state is None else [s[:, i] for s in flat(state)]
            alone = tuple(parts) if layer.parts == 2 else parts[0] if parts else None
            exact, end = layer(piece, None if state is None else alone)
            close(output, exact)
            close([s[:, i] for s in flat(last)], end)


@pytest.mark.parametrize("form", ["diagonal", "dense"])
@every_kind
def test_gradients_through_packed_sequences(kind, form):
    layer = make(kind, form, bidirectional=True)
    pieces = [torch.randn(length, 3, requires_grad=True) for length in (4, 6, 2)]
    leaves = [*pieces, *layer.parameters()]
    packed, _ = layer(pack_sequence(pieces, enforce_sorted=False))
    ours = torch.autograd.grad(packed.data.square().sum(), leaves)
    theirs = torch.autograd.grad(sum(layer(p)[0].square().sum() for p in pieces), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["diagonal", "dense"])
@every_kind
def test_backwards_is_forwards_on_what_is_turned(kind, form):
    both, ahead = make(kind, form, 3, 5, 1, bidirectional=True), make(kind, form, 3, 5, 1)
    inputs, state = torch.randn(8, 2, 3), states_for(both)
    outputs, last = both(inputs, state)
    for direction, suffix in enumerate(("", "_reverse")):
        weights = {n: both.get_parameter(n + suffix) for n, _ in ahead.named_parameters()}
        ahead.load_state_dict(weights)
        turned = inputs.flip(0) if direction else inputs
        parts = [s[direction : direction + 1] for s in flat(state)]
        exact, end = ahead(turned, tuple(parts) if both.parts == 2 else parts[0])
        exact = exact.flip(0) if direction else exact
        close(outputs[..., 5 * direction : 5 * (direction + 1)], exact)
        close([s[direction : direction + 1] for s in flat(last)], end)


@pytest.mark.parametrize("form", ["diagonal", "dense", "dense newton"])
@every_kind
def test_layouts(kind, form):
    layer, first = make(kind, form), make(kind, form, batch_first=True)
    inputs, state = torch.randn(7, 2, 3), states_for(layer)
    outputs, last = layer(inputs, state)
    swapped, same = first(inputs.transpose(0, 1), state)
    close(swapped, outputs.transpose(0, 1))
    close(same, last)
    apart = torch.randn(7, 2, 6)[..., ::2].copy_(inputs)
    close(layer(apart, state), (outputs, last))
    strided = [torch.stack((s, s), -1)[..., 0] for s in flat(state)]
    close(layer(inputs, tuple(strided) if layer.parts == 2 else strided[0]), (outputs, last))
    single, end = layer(
        inputs[:, 0], [s[:, 0] for s in flat(state)] if layer.parts == 2 else state[:, 0]
    )
    close(single, outputs[:, 0])
    close(end, [s[:, 0] for s in flat(last)])


@pytest.mark.parametrize("form", ["diagonal", "diagonal quasi", "dense", "dense newton"])
@every_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_steps_and_no_sequences(kind, form, bidirectional):
    layer = make(kind, form, bidirectional=bidirectional)
    state = states_for(layer)
    outputs, last = layer(torch.randn(0, 2, 3), state)
    assert outputs.shape == (0, 2, 5 * layer.directions)
    close(last, state, atol=0)
    assert all(s.eq(0).all() for s in flat(layer(torch.randn(0, 2, 3))[1]))
    outputs, last = layer(torch.randn(4, 0, 3))
    assert outputs.shape == (4, 0, 5 * layer.directions)
    assert flat(last)[0].shape == (2 * layer.directions, 0, 5)


@pytest.mark.parametrize("form", FORMS)
@every_kind
def test_nan_is_refused_or_shows_from_its_step_on(kind, form):
    layer, inputs = make(kind, form), torch.randn(9, 2, 3)
    exact = layer(inputs)[0]
    inputs[4, 0, 1] = torch.nan
    if form in ("diagonal quasi", "dense newton"):
        with pytest.raises(ValueError, match=r"expected finite numbers, got nan at \(0, 4, 1\)"):
            layer(inputs)
        return
    outputs = layer(inputs)[0]
    assert outputs[4:, 0].isnan().all()
    close(outputs[:4], exact[:4])
    close(outputs[:, 1], exact[:, 1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("structure", ["diagonal", "dense"])
@every_kind
def test_an_overflow_passes_through_a_number_of_iterations(kind, structure, value):
    """A gradient scaler sees it and leaves the step out; the sequences beside are as they were."""
    layer, inputs = make(kind, structure=structure, mode=3), torch.randn(9, 2, 3)
    exact = layer(inputs)[0]
    inputs[4, 0] = value
    outputs = layer(inputs)[0]
    close(outputs[:, 1], exact[:, 1])
    close(outputs[:4, 0], exact[:4, 0])
    if value is torch.nan:
        assert outputs[4, 0].isnan().all()


@pytest.mark.parametrize("form", ["diagonal", "diagonal free", "dense newton"])
@every_kind
def test_as_many_iterations_as_steps_converge(kind, form):
    exact, layer = (
        make(kind, form),
        make(kind, form, mode=12, window=None, backend="auto", method="auto"),
    )
    assert list(layer.state_dict()) == list(exact.state_dict())
    inputs, state = torch.randn(12, 2, 3), states_for(exact)
    close(layer(inputs, state), exact(inputs, state))
    packed = pack_sequence([torch.randn(length, 3) for length in (5, 12, 1)], enforce_sorted=False)
    close(layer(packed)[0].data, exact(packed)[0].data)


@every_kind
def test_few_iterations_are_a_model_of_its_own(kind):
    exact, layer = make(kind), make(kind, mode=2, method="jacobi")
    inputs = torch.randn(12, 2, 3)
    outputs, truth = layer(inputs)[0], exact(inputs)[0]
    assert (outputs - truth).abs().max() > 1e-3
    close(outputs[:2], truth[:2])
    close(layer.eval()(inputs)[0], outputs, atol=0)
    first = make(kind, "diagonal", 3, 5, 1, mode=1, method="jacobi")
    state = states_for(first)
    moved = first(inputs, state)[0]  # one Jacobi iteration: a step from the initial state
    close(moved, torch.stack([first_step(first, step, state) for step in inputs]))


def first_step(layer, step, state):
    converged = copy.deepcopy(layer)
    converged.options["mode"] = "converged"
    return converged.step(step, state)[0]


@pytest.mark.parametrize("form", ["diagonal", "dense"])
@every_kind
def test_dropout_lies_between_layers_in_training(kind, form):
    layer = make(kind, form, dropout=0.5)
    inputs = torch.randn(9, 4, 3)
    assert not torch.equal(layer(inputs)[0], layer(inputs)[0])
    close(layer.eval()(inputs), make(kind, form)(inputs), atol=0)
    with pytest.warns(UserWarning, match="only one"):
        single = make(kind, form, 3, 5, 1, dropout=0.5)
    close(single(inputs), make(kind, form, 3, 5, 1)(inputs), atol=0)
    # All is dropped: the second layer sees zeros.
    dropped = make(kind, form, dropout=1.0)
    first, second = dropped(inputs)[0], dropped(torch.randn(9, 4, 3))[0]
    close(first, second, atol=0)
    assert first.abs().max() > 0
