"""The layers as modules: compilers, dtypes, devices, checkpoints, refusals."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from ropewalk.blocks.recurrent import LayerOptions, ParallelGRU, ParallelLSTM, ParallelRNN
from ropewalk.blocks.recurrent.layers.fused import torch_rnn_op

LAYERS = {"gru": ParallelGRU, "lstm": ParallelLSTM, "rnn": ParallelRNN}
every_kind = pytest.mark.parametrize("kind", LAYERS)
every_structure = pytest.mark.parametrize("structure", ["diagonal", "dense"])


def make(kind, *sizes, structure="diagonal", **options):
    torch.manual_seed(0)
    return LAYERS[kind](*(sizes or (3, 5, 2)), structure=structure, **options)


def states_for(layer, batch=2, dtype=torch.float32):
    shape = (layer.num_layers * layer.directions, batch, layer.hidden_size)
    parts = tuple((torch.rand(shape) * 2 - 1).to(dtype) for _ in range(layer.parts))
    return parts if layer.parts == 2 else parts[0]


def flat(x):
    """Tensors of nested tuples."""
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]


def close(got, expected, rtol=1e-5, atol=1e-5):
    for one, other in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()  # every layer is another to a compiler, which takes only so many


@every_structure
@every_kind
def test_compiled(kind, structure):
    layers = 2 if kind == "gru" else 1
    check_compiled(make(kind, 3, 5, layers, structure=structure, bidirectional=True))


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_compiled_with_a_number_of_iterations(structure):
    check_compiled(make("gru", 3, 5, structure=structure, mode=2))


def check_compiled(layer):
    inputs, state = torch.randn(5, 2, 3, requires_grad=True), states_for(layer)
    leaves = [inputs, *(s.requires_grad_() for s in flat(state)), *layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, exact = compiled(inputs, state), layer(inputs, state)
    close(found, exact)
    ours, theirs = (
        torch.autograd.grad(sum(x.square().sum() for x in flat(results)), leaves)
        for results in (found, exact)
    )
    close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_structure
@every_kind
def test_a_compiled_step(kind, structure):
    layer = make(kind, structure=structure)
    step = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
    inputs, state = torch.randn(2, 3), states_for(layer)
    with torch.no_grad():
        close(step(inputs, state), layer.step(inputs, state))


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_compiled_by_inductor(structure):
    layer = make("gru", 3, 5, 1, structure=structure)
    inputs = torch.randn(7, 2, 3)
    compiled = torch.compile(layer, fullgraph=True)
    compiled(inputs)[0].sum().backward()
    ours = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(inputs)[0].sum().backward()
    close(ours, [p.grad for p in layer.parameters()], rtol=1e-4)


def test_compiled_dropout_is_drawn_once():
    """Its mask is outside of what the backward computes again: gradients are differences'."""
    layer = make("gru", structure="dense", dropout=0.5, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs, direction = torch.randn(2, 6, 2, 3, dtype=torch.float64)
    assert not torch.equal(compiled(inputs)[0], compiled(inputs)[0])

    def loss(inputs):
        torch.manual_seed(3)
        return compiled(inputs)[0].square().sum()

    given = inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(given), given)
    ahead, behind = (
        loss((inputs + s * direction).detach().requires_grad_()) for s in (1e-5, -1e-5)
    )
    torch.testing.assert_close((gradient * direction).sum(), ((ahead - behind) / 2e-5).detach())


# Dynamo hides this warning of its own, but not where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@every_structure
def test_a_compiler_leaves_packed_sequences_to_the_layer(structure):
    layer = make("gru", structure=structure)
    packed = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    compiled = torch.compile(layer, backend="aot_eager")
    found = compiled(packed)[0].data
    close(found, layer(packed)[0].data)
    found.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    torch._dynamo.reset()
    with pytest.raises(Exception, match="_outside_of_compilers"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(packed)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("options", [{"method": "elk"}, {"structure": "dense", "method": "newton"}])
def test_a_compiler_leaves_the_solvers_to_the_layer(options):
    """And says in one sentence why, where it may not."""
    layer, inputs = make("gru", 3, 5, **options), torch.randn(6, 2, 3)
    exact = layer(inputs)
    words = r"ParallelGRU with method='\w+' cannot be compiled as a whole.*take method='auto'"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=words):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs)
    torch._dynamo.reset()
    close(torch.compile(layer, backend="aot_eager")(inputs), exact)


@pytest.mark.opcheck
@pytest.mark.parametrize("kind", ["gru", "lstm", "tanh"])
def test_opcheck(kind):
    torch.manual_seed(0)
    gates = {"gru": 3, "lstm": 4, "tanh": 1}[kind]
    data = torch.randn(2, 3, 2, requires_grad=True)
    states = [torch.randn(1, 2, 4, requires_grad=True) for _ in range(2 if kind == "lstm" else 1)]
    shapes = [(gates * 4, 2), (gates * 4, 4), (gates * 4,), (gates * 4,)]
    weights = [torch.randn(shape).requires_grad_() for shape in shapes]
    torch.library.opcheck(torch_rnn_op, (kind, data, states, weights, True, False))


@every_structure
@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, structure, dtype):
    layer = make(kind, structure=structure).to(dtype)
    inputs, state = torch.randn(30, 2, 3).to(dtype), states_for(layer, dtype=dtype)
    outputs, last = layer(inputs, state)
    assert {x.dtype for x in flat((outputs, last))} == {dtype}
    wide = [s.double() for s in flat(state)]
    exact = copy.deepcopy(layer).double()(
        inputs.double(), tuple(wide) if layer.parts == 2 else wide[0]
    )
    close([x.double() for x in flat((outputs, last))], exact, rtol=0.05, atol=0.05)
    output, after = layer.step(inputs[0], state)
    assert {x.dtype for x in flat((output, after))} == {dtype}
    close(output, outputs[0], rtol=0.05, atol=0.02)
    outputs.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())


@every_structure
@every_kind
def test_autocast(kind, structure):
    layer = make(kind, structure=structure)
    inputs, state = torch.randn(9, 2, 3), states_for(layer)
    exact = layer(inputs, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(inputs, state)
        again = layer(inputs, found[1])
        stepped = layer.step(inputs[0], state)
    assert {x.dtype for x in flat((found, again, stepped))} == {torch.bfloat16}
    close([x.float() for x in flat(found)], exact, rtol=0.05, atol=0.05)
    close(stepped[0], found[0][0], rtol=0.05, atol=0.02)
    flat(found)[0].float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@every_structure
def test_autocast_in_a_compiler(structure):
    layer, inputs = make("gru", 3, 5, structure=structure), torch.randn(9, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(inputs)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs)
    assert {x.dtype for x in flat(compiled)} == {torch.bfloat16}
    close(compiled, found, rtol=0.02, atol=0.02)


@every_structure
@every_kind
def test_copies_checkpoints_and_meta(kind, structure):
    layer = make(kind, structure=structure, bidirectional=True)
    inputs = torch.randn(6, 2, 3)
    exact = layer(inputs)
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    close(layer(inputs), exact, atol=0)
    assert flat(copied(inputs))[0].abs().max() == 0
    close(pickle.loads(pickle.dumps(layer))(inputs), exact, atol=0)
    meta = make(kind, structure=structure, bidirectional=True, device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    shapes = [x.shape for x in flat(meta(inputs.to("meta")))]
    assert shapes == [x.shape for x in flat(exact)]
    empty = meta.to_empty(device="cpu")
    torch.manual_seed(0)
    empty.reset_parameters()
    close(empty(inputs), exact)
    torch.manual_seed(1)
    empty.reset_parameters()
    assert (flat(empty(inputs))[0] - flat(exact)[0]).abs().max() > 1e-3
    empty.load_state_dict(layer.state_dict())
    close(empty(inputs), exact, atol=0)
    assert list(layer.children()) == []
    empty.flatten_parameters()
    swapped = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    assert flat(torch.func.functional_call(layer, swapped, (inputs,)))[0].abs().max() == 0


@every_kind
def test_the_bounded_recurrence_forgets(kind):
    """States in [−1, 1] that start apart never move further apart, whatever the weights are."""
    for structure in ("diagonal", "dense"):
        if (kind, structure) == ("lstm", "dense"):
            continue
        layer = make(kind, 3, 5, 1, structure=structure, bounded=True)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(50)
        inputs = torch.randn(50, 4, 3)
        one, other = (flat(layer(inputs, states_for(layer, 4)))[1:] for _ in range(2))
        torch.manual_seed(0)
        first = flat(states_for(layer, 4))
        second = flat(states_for(layer, 4))
        as_given = (lambda s: tuple(s)) if layer.parts == 2 else (lambda s: s[0])
        one, other = flat(layer(inputs, as_given(first))), flat(layer(inputs, as_given(second)))
        before = torch.stack([a - b for a, b in zip(first, second, strict=True)]).abs().amax((0, 3))
        after = (
            torch.stack([a - b for a, b in zip(one[1:], other[1:], strict=True)]).abs().amax((0, 3))
        )
        assert (after <= before + 1e-5).all()


def test_options_have_a_public_type():
    assert set(LayerOptions.__annotations__) == set(ParallelGRU(3, 5).options)


def test_shown():
    layer = ParallelGRU(3, 5, 2, batch_first=True, method="newton", window=32)
    assert repr(layer) == (
        "ParallelGRU(3, 5, num_layers=2, batch_first=True, structure='diagonal', "
        "method='newton', window=32)"
    )
    dense = ParallelGRU(3, 5, structure="dense")
    assert repr(dense) == "ParallelGRU(3, 5, structure='dense')"
    assert repr(ParallelGRU(3, 5, structure="dense", bounded=False)) == repr(dense)
    assert "bounded=True" in repr(ParallelGRU(3, 5, structure="dense", bounded=True))
    assert "bounded=False" in repr(ParallelLSTM(3, 5, bounded=False))


@every_structure
@every_kind
def test_refused_inputs(kind, structure):
    layer = make(kind, structure=structure)
    inputs, state = torch.randn(6, 2, 3), states_for(layer)
    for wrong in (inputs[..., :2], inputs[None], inputs[0, 0], inputs.long()):
        with pytest.raises(ValueError, match="expected"):
            layer(wrong)
    with pytest.raises(ValueError, match=r"expected torch\.float32 as the parameters are"):
        layer(inputs.double())
    with pytest.raises(ValueError, match="input: expected it on cpu as the parameters are, got me"):
        layer(inputs.to("meta"))
    with pytest.raises(TypeError, match="expected a tensor or a PackedSequence, got list"):
        layer([inputs])
    with pytest.raises(ValueError, match="input_size"):
        layer(pack_sequence([torch.randn(4, 2)]))

    def with_parts(change):
        parts = tuple(change(s) for s in flat(state))
        return parts if layer.parts == 2 else parts[0]

    for change in (lambda s: s[:1], lambda s: s[:, :1], lambda s: s[:, 0], lambda s: s[..., :2]):
        with pytest.raises(ValueError, match=r"hx.*: expected \(2, 2, 5\)"):
            layer(inputs, with_parts(change))
        if change(flat(state)[0]).ndim == 3:
            with pytest.raises(ValueError, match=r"state.*: expected \(2, 2, 5\)"):
                layer.step(inputs[0], with_parts(change))
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        layer(inputs, with_parts(lambda s: s.double()))
    with pytest.raises(ValueError, match=r"hx.*: expected \(2, 5\)"):
        layer(inputs[:, 0], state)
    for wrong in (inputs, inputs[0, 0], [1.0]):
        with pytest.raises(ValueError, match=r"step: expected \(batch, input_size\)"):
            layer.step(wrong)
    if kind == "lstm":
        with pytest.raises(TypeError, match=r"expected a pair \(h, c\)"):
            layer(inputs, state[0])
    with pytest.raises(ValueError, match="one direction"):
        make(kind, structure=structure, bidirectional=True).step(inputs[0])
    with pytest.raises(ValueError, match="mode='converged'"):
        make(kind, structure=structure, mode=3).step(inputs[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"structure": "block"}, ValueError, "structure: expected one of diagonal, dense"),
        ({"bounded": 1}, TypeError, "bounded: expected True or False"),
        ({"mode": "fixed"}, ValueError, "mode: expected 'converged' or a number"),
        ({"mode": 0}, ValueError, "mode: expected an integer ≥ 1"),
        ({"mode": 2.0}, TypeError, "mode: expected an integer ≥ 1"),
        ({"mode": 2, "method": "sequential"}, ValueError, "method: expected an iteration"),
        ({"mode": 2, "window": 4}, ValueError, "window: expected None with mode=2"),
        ({"mode": 2, "backend": "reference"}, ValueError, "backend: expected 'auto'"),
        ({"method": "bisection"}, ValueError, "method: expected one of auto"),
        ({"method": "sequential", "window": 4}, ValueError, "window: expected None"),
        ({"method": "quasi", "backend": "reference"}, ValueError, "backend: expected 'auto'"),
        ({"window": 0}, ValueError, "window: expected an integer ≥ 1"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of"),
        (
            {"structure": "dense", "window": 4},
            ValueError,
            "window: expected None",
        ),
        (
            {"structure": "dense", "backend": "reference"},
            ValueError,
            "backend: expected 'auto'",
        ),
        ({"windows": 4}, TypeError, "expected options among structure"),
        ({"bias": 1}, TypeError, "bias: expected True or False"),
        ({"num_layers": 0}, ValueError, "num_layers: expected an integer ≥ 1"),
        ({"dropout": 1.5}, ValueError, "dropout: expected a probability"),
        ({"dtype": torch.int64}, ValueError, "dtype: expected a floating-point one"),
    ],
)
@every_kind
def test_refused_options(kind, options, error, words):
    with pytest.raises(error, match=words):
        LAYERS[kind](3, 5, **options)


@pytest.mark.usefixtures("warned_freely")  # elk may not converge in 4 iterations
def test_options_that_have_an_effect_are_taken():
    for options in (
        {"method": "newton", "window": 4, "backend": "reference"},
        {"window": 4},
        {"method": "elk", "window": 4},
        {"structure": "dense", "method": "newton", "window": 4},
        {"structure": "dense", "method": "sequential"},
        {"mode": 3, "method": "picard"},
    ):
        assert ParallelGRU(3, 5, **options)(torch.randn(6, 2, 3))[0].shape == (6, 2, 5)
