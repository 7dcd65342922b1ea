"""LRU, SLRU and minGRU: the whole sequence is the loop over its steps, in every respect."""

import copy
import math

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from ropewalk.blocks.recurrent.linear import LRU, SLRU, MinGRU

KINDS = {
    "lru": LRU,
    "lru slow": lambda i, h, **o: LRU(i, h, r_min=0.9, r_max=1.0, max_phase=math.pi / 10, **o),
    "slru": SLRU,
    "slru slow": lambda i, h, **o: SLRU(i, h, r_min=0.95, **o),
    "mingru": MinGRU,
    "mingru positive": lambda i, h, **o: MinGRU(i, h, positive=True, bias=False, **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
COMPLEX_IN_COMPILERS = pytest.mark.filterwarnings(
    "ignore:Torchinductor does not support code generation for complex operators"
)


def make(kind, input_size=5, hidden_size=7, **options):
    torch.manual_seed(0)
    return KINDS[kind](input_size, hidden_size, **options)


def state_for(layer, sequences=2, dtype=torch.float32):
    torch.manual_seed(1)
    kind = dtype.to_complex() if layer.complex_state else dtype
    return torch.randn(sequences, layer.hidden_size, dtype=kind)


def loop(layer, inputs, state=None):
    outputs = []
    for t in range(inputs.shape[1]):
        output, state = layer.step(inputs[:, t], state)
        outputs.append(output)
    return torch.stack(outputs, 1), state


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)


@every_kind
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (2, 3), (3, 130)])
def test_the_sequence_is_the_loop_over_steps(kind, batch, time, given):
    layer = make(kind)
    inputs, state = torch.randn(batch, time, 5), state_for(layer, batch) if given else None
    outputs, last = layer(inputs, state)
    exact, exact_last = loop(layer, inputs, state)
    close(outputs, exact)
    close(last, exact_last)


@every_kind
def test_it_resumes_from_its_final_state(kind):
    layer, inputs = make(kind), torch.randn(2, 50, 5)
    whole, last = layer(inputs)
    first, state = layer(inputs[:, :21])
    second, again = layer(inputs[:, 21:], state)
    close(torch.cat((first, second), 1), whole)
    close(again, last)


@every_kind
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_packed_sequences_do_not_touch(kind, index):
    layer, lengths = make(kind), [3, 0, 1, 12]
    cu_seqlens = torch.tensor([0, 3, 3, 4, 16], dtype=index)
    inputs, state = torch.randn(1, 16, 5), state_for(layer, 4)
    for initial in (state, None):
        outputs, last = layer(inputs, initial, cu_seqlens=cu_seqlens)
        for i, (piece, length) in enumerate(zip(inputs.split(lengths, 1), lengths, strict=True)):
            before = None if initial is None else initial[i : i + 1]
            alone, end = layer(piece, before)
            close(outputs[:, cu_seqlens[i] : cu_seqlens[i] + length], alone)
            close(last[i : i + 1], end)


@every_kind
def test_gradients_are_those_of_the_loop(kind):
    layer, inputs = make(kind), torch.randn(2, 9, 5, requires_grad=True)
    state = state_for(layer).requires_grad_()
    leaves = [inputs, state, *layer.parameters()]

    def loss(run):
        outputs, last = run(inputs, state)
        return outputs.square().sum() + last.abs().square().sum()

    ours = torch.autograd.grad(loss(layer), leaves)
    theirs = torch.autograd.grad(loss(lambda x, s: loop(layer, x, s)), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_kind
def test_gradcheck(kind):
    layer = make(kind, 2, 3, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    inputs = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    state = state_for(layer, 2, torch.float64).requires_grad_()
    cu_seqlens = torch.tensor([0, 2, 5])

    def run(inputs, state, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, given, (inputs, state), {"cu_seqlens": cu_seqlens})

    assert torch.autograd.gradcheck(run, (inputs, state, *layer.parameters()))


@every_kind
def test_no_steps(kind):
    layer = make(kind)
    state = state_for(layer)
    outputs, last = layer(torch.randn(2, 0, 5), state)
    assert outputs.shape == (2, 0, 7 if "mingru" in kind else 5)
    torch.testing.assert_close(last, state)
    _, last = layer(torch.randn(2, 0, 5))
    torch.testing.assert_close(last, torch.zeros_like(state))


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("made", ["cast", "so"])
def test_half_precision_rounds_projections_and_not_states(kind, dtype, made):
    layer = make(kind, dtype=dtype) if made == "so" else make(kind).to(dtype)
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == (torch.float32 if name in layer.wide else dtype)
    inputs = torch.randn(2, 40, 5).to(dtype)
    outputs, last = layer(inputs, state_for(layer))
    assert outputs.dtype == dtype
    assert last.dtype == (torch.complex64 if layer.complex_state else torch.float32)
    exact, exact_last = copy.deepcopy(layer).double()(inputs.double(), state_for(layer))
    torch.testing.assert_close(outputs.double(), exact, rtol=0.03, atol=0.1)
    torch.testing.assert_close(last.to(exact_last.dtype), exact_last, rtol=0.03, atol=0.05)
    stepped, end = loop(layer, inputs, state_for(layer))
    # A product of one row and of many may be rounded differently.
    torch.testing.assert_close(outputs, stepped, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(last, end, rtol=2**-6, atol=2**-6)
    outputs.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


@every_kind
def test_wide_parameters_keep_their_digits(kind):
    layer, exact = make(kind), make(kind)
    layer(torch.randn(1, 3, 5))[0].sum().backward()
    layer.bfloat16().float()
    for name in layer.wide:
        torch.testing.assert_close(
            layer.get_parameter(name), exact.get_parameter(name), rtol=0, atol=0
        )
        assert layer.get_parameter(name).grad.dtype == torch.float32
    assert {p.dtype for p in layer.double().parameters()} == {torch.float64}
    assert {p.dtype for p in layer.float().parameters()} == {torch.float32}


@every_kind
def test_autocast(kind):
    layer, inputs = make(kind), torch.randn(2, 30, 5)
    exact, _ = layer(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, last = layer(inputs)
        stepped, _ = loop(layer, inputs)
    assert outputs.dtype == stepped.dtype == torch.float32
    assert last.dtype in (torch.complex64, torch.float32)
    torch.testing.assert_close(outputs, exact, rtol=0.03, atol=0.1)
    torch.testing.assert_close(outputs, stepped, rtol=0.01, atol=0.01)


@every_kind
def test_layouts_copies_meta_and_checkpoints(kind):
    layer, inputs = make(kind), torch.randn(6, 2, 5)
    outputs, _ = layer(inputs.transpose(0, 1))
    close(outputs, layer(inputs.transpose(0, 1).contiguous())[0])
    assert torch.equal(copy.deepcopy(layer)(inputs)[0], layer(inputs)[0])
    meta = make(kind, device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert meta(inputs.to("meta"))[0].shape == layer(inputs)[0].shape
    empty = meta.to_empty(device="cpu")
    empty.reset_parameters()
    assert all(p.isfinite().all() for p in empty.parameters())
    empty.load_state_dict(layer.state_dict())
    close(empty(inputs)[0], layer(inputs)[0], atol=0)
    assert "5, 7" in repr(layer)


@pytest.mark.parametrize("kind", ["lru", "slru", "mingru"])
@COMPLEX_IN_COMPILERS
def test_compiled(kind):
    layer = make(kind)
    inputs, state = torch.randn(2, 6, 5, requires_grad=True), state_for(layer).requires_grad_()
    leaves = [inputs, state, *layer.parameters()]

    def loss(module):
        outputs, last = module(inputs, state)
        return outputs.square().sum() + last.abs().square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    close(torch.autograd.grad(loss(compiled), leaves), torch.autograd.grad(loss(layer), leaves))
    packed = inputs.detach()[:1], state.detach()
    cu_seqlens = torch.tensor([0, 2, 6])
    close(compiled(*packed, cu_seqlens=cu_seqlens), layer(*packed, cu_seqlens=cu_seqlens))


@every_kind
def test_refusals(kind):
    layer, inputs = make(kind), torch.randn(2, 6, 5)
    for wrong in (inputs[0], inputs[..., :4], inputs.long()):
        with pytest.raises(ValueError, match="expected"):
            layer(wrong)
    for call, given in ((layer, inputs), (layer.step, inputs[:, 0])):
        words = (
            r"expected inputs in torch.float32 as .* got torch.float64; use .to\(torch.float32\)"
        )
        with pytest.raises(ValueError, match=words):
            call(given.double())
        with pytest.raises(
            TypeError, match=r"a tensor, got PackedSequence; .*torch.cat.*cu_seqlens"
        ):
            call(pack_sequence([inputs[0]]))
        with pytest.raises(TypeError, match=r"a tensor, got list"):
            call(given.tolist())
    with pytest.raises(ValueError, match=r"expected inputs \(batch, input_size\)"):
        layer.step(inputs)
    with pytest.raises(ValueError, match=r"initial_state: expected \(2, 7\)"):
        layer(inputs, state_for(layer, 3))
    with pytest.raises(ValueError, match=r"state: expected \(2, 7\)"):
        layer.step(inputs[:, 0], state_for(layer, 1))
    with pytest.raises(ValueError, match=r"initial_state: expected \(3, 7\)"):
        layer(inputs[:1], state_for(layer), cu_seqlens=torch.tensor([0, 1, 2, 6]))
    with pytest.raises(ValueError, match="cu_seqlens"):
        layer(inputs[:1], cu_seqlens=torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="cu_seqlens"):
        layer(inputs, cu_seqlens=torch.tensor([0, 6]))
    if not layer.complex_state:
        with pytest.raises(ValueError, match="expected a real state"):
            layer(inputs, state_for(layer).to(torch.complex64))
    for sizes in ((0, 3), (3, 0), (2.0, 3)):
        with pytest.raises((ValueError, TypeError), match="expected an integer ≥ 1"):
            KINDS[kind](*sizes)
