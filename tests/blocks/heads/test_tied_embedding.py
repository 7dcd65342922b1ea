"""`TiedEmbedding`: against materialised float64 logits, and that nothing takes the tie apart."""

import copy

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch.nn.functional import cross_entropy

from ropewalk.blocks.heads import OUTPUT_FORMS, TiedEmbedding

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OPTIONS = [
    {},
    {"bias": True},
    {"logit_scale": 0.3, "input_scale": 2.0},
    {"softcap": 1.5, "bias": True, "logit_scale": 2.0},
]


def make(output="identity", rows=13, dim=6, **options):
    torch.manual_seed(0)
    head = TiedEmbedding(rows, dim, init="normal", std=1.0, output=output, **options)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias.data)
    return head


def twin_logits(parameters, hidden, output, logit_scale=1.0, softcap=None):
    """The logits by the definition, from the table and not from the hidden state."""
    table = parameters.get("output_weight", parameters["weight"])
    if output == "swap":
        table = table.roll(table.shape[1] // 2, 1)
    if output == "shuffle":
        assert table.shape[1] == 6
        table = table[:, [0, 3, 1, 4, 2, 5]]
    if output == "orthogonal":
        table = table @ parameters["projection"].mT
    logits = hidden @ table.mT
    if "bias" in parameters:
        logits = logits + parameters["bias"]
    logits = logits * logit_scale
    return logits if softcap is None else softcap * (logits / softcap).tanh()


@pytest.mark.parametrize("output", OUTPUT_FORMS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (5,)], ids=str)
def test_loss_and_gradients_are_those_of_float64_logits(output, options, shape):
    head = make(output, dtype=torch.float64, **options)
    hidden = torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)
    ids, targets = torch.randint(13, (2, *shape))
    loss = head.loss(hidden + head.embed(ids), targets)
    loss.backward()

    parameters = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in head.named_parameters()
    }
    inner = hidden.detach().clone().requires_grad_()
    embedded = parameters["weight"][ids] * options.get("input_scale", 1.0)
    scales = {name: options[name] for name in ("logit_scale", "softcap") if name in options}
    logits = twin_logits(parameters, inner + embedded, output, **scales)
    expected = cross_entropy(logits.flatten(0, -2), targets.flatten())
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, inner.grad)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad)
    with torch.no_grad():
        got = head.logits(hidden + head.embed(ids))
    torch.testing.assert_close(got, logits.detach())


def test_every_option_of_the_loss_reaches_the_kernel():
    head = make("swap", bias=True, softcap=3.0)
    hidden, targets = torch.randn(2, 5, 6), torch.randint(13, (2, 5))
    targets[0, 2] = 7
    weights = torch.rand(13)
    logits = head.logits(hidden)[:, :-1].flatten(0, 1)
    lse = logits.logsumexp(-1)
    following = targets[:, 1:].flatten()
    expected = cross_entropy(
        logits, following, weights, ignore_index=7, label_smoothing=0.2, reduction="none"
    )
    counted = following != 7
    expected, lse = expected + counted * 0.1 * lse**2, lse * counted
    got, got_lse = head.loss(
        hidden, targets, ignore_index=7, label_smoothing=0.2, z_loss=0.1, weight_per_class=weights,
        reduction="none", return_logsumexp=True, shift=True, exact=False, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(got.flatten(), expected)
    torch.testing.assert_close(got_lse.flatten(), lse)


@pytest.mark.parametrize("output", OUTPUT_FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(output, dtype):
    head = make(output, dtype=dtype, bias=True)
    ids = torch.arange(13)
    hidden = torch.randn(13, 6, dtype=dtype)
    assert head(ids).dtype == head.logits(hidden).dtype == dtype
    loss = head.loss(head(ids) + hidden, ids)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    exact = cross_entropy(head.double().logits((head(ids) + hidden).double()), ids)
    tolerance = {torch.bfloat16: 5e-2, torch.float16: 5e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_hidden_states_of_any_strides(output):
    head = make(output)
    hidden, targets = torch.randn(6, 5, 4).permute(2, 1, 0), torch.randint(13, (4, 5))
    assert not hidden.is_contiguous()
    torch.testing.assert_close(head.logits(hidden), head.logits(hidden.contiguous()))
    torch.testing.assert_close(head.loss(hidden, targets), head.loss(hidden.contiguous(), targets))


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_autocast_takes_half_products_of_full_weights(output):
    head = make(output, bias=True)
    hidden, targets = torch.randn(4, 5, 6, requires_grad=True), torch.randint(13, (4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = head.logits(hidden), head.loss(hidden, targets)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(hidden, targets), rtol=3e-2, atol=3e-2)
    loss.backward()
    gradients = [x.grad for x in (hidden, *head.parameters()) if x.grad is not None]
    assert len(gradients) == 1 + len(list(head.parameters())) - (output == "untied")
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_compiled_whole(output):
    head = make(output, bias=True, softcap=5.0, logit_scale=0.7, input_scale=1.5)

    def step(ids):
        hidden = head(ids)
        return head.loss(hidden, ids, shift=True), head.logits(hidden)

    ids = torch.randint(13, (3, 5))
    expected = step(ids)
    expected[0].backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    head.zero_grad(set_to_none=True)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(ids)
    got[0].backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close({n: p.grad for n, p in head.named_parameters()}, gradients)


PARAMETERS = {"orthogonal": {"weight", "projection"}, "untied": {"weight", "output_weight"}}


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_state_dict_has_one_parameter_but_for_the_forms_with_more(output):
    assert set(make(output).state_dict()) == PARAMETERS.get(output, {"weight"})
    assert set(make(output, bias=True).state_dict()) == {
        *PARAMETERS.get(output, {"weight"}), "bias"
    }  # fmt: skip


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_round_trips(output, tmp_path):
    """Through a state dict and both ways of safetensors, which refuses shared tensors."""
    head, hidden = make(output, bias=True), torch.randn(3, 6)
    expected = head.logits(hidden)
    save_model(head, str(tmp_path / "model.safetensors"))
    save_file(head.state_dict(), str(tmp_path / "file.safetensors"))
    for fill in (
        lambda new: new.load_state_dict(head.state_dict()),
        lambda new: new.load_state_dict(copy.deepcopy(head.state_dict()), assign=True),
        lambda new: load_model(new, str(tmp_path / "model.safetensors")),
        lambda new: new.load_state_dict(load_file(tmp_path / "file.safetensors")),
    ):
        new = TiedEmbedding(13, 6, output=output, bias=True)
        fill(new)
        assert torch.equal(new.logits(hidden), expected)
        assert torch.equal(new(torch.arange(13)), head(torch.arange(13)))


@pytest.mark.parametrize("output", ["identity", "swap", "shuffle", "orthogonal"])
def test_untied_late_in_training(output):
    head, hidden = make(output, bias=True, softcap=4.0), torch.randn(3, 6)
    late = TiedEmbedding(13, 6, output="untied", bias=True, softcap=4.0)
    late.weight, late.bias = head.weight, head.bias
    late.output_weight = torch.nn.Parameter(head.output_matrix().detach().clone())
    torch.testing.assert_close(late.logits(hidden), head.logits(hidden))


def is_tied(head):
    """Whether the logits follow the embedding."""
    before = head.logits(torch.ones(1, head.embedding_dim))
    with torch.no_grad():
        head.weight.mul_(2.0)
    torch.testing.assert_close(head.logits(torch.ones(1, head.embedding_dim)), 2 * before)
    return True


@pytest.mark.parametrize("output", ["identity", "swap", "shuffle", "orthogonal"])
def test_the_tie_survives_copies(output):
    head = make(output)
    table = head.weight.detach().clone()
    assert is_tied(copy.deepcopy(head))
    assert torch.equal(head.weight, table)
    assert is_tied(head.to(torch.float64).float())


@pytest.mark.parametrize("output", OUTPUT_FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tie_survives_the_meta_device(output, dtype):
    head = TiedEmbedding(
        500, 24, output=output, bias=True, padding_idx=2, device="meta", dtype=dtype
    )
    assert all(parameter.is_meta for parameter in head.parameters())
    head.to_empty(device="cpu")
    for parameter in head.parameters():
        parameter.data.fill_(float("nan"))
    torch.manual_seed(0)
    head.reset_parameters()
    torch.manual_seed(0)
    expected = TiedEmbedding(500, 24, output=output, bias=True, padding_idx=2, dtype=dtype)
    torch.testing.assert_close(dict(head.state_dict()), dict(expected.state_dict()))
    assert not head.weight[2].any()


def test_padding_gets_no_gradient_from_the_input_but_from_the_head():
    head = make(padding_idx=3)
    (gradient,) = torch.autograd.grad(head(torch.tensor([3, 4])).sum(), head.weight)
    assert not gradient[3].any()
    assert gradient[4].any()
    loss = head.loss(torch.randn(2, 6), torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient[3].any()


def test_embeddings_are_scaled():
    head = make(input_scale=3.0)
    torch.testing.assert_close(head(torch.arange(13)), 3 * head.weight)
    assert torch.equal(head(torch.arange(13, dtype=torch.int32)), head.embed(torch.arange(13)))


def test_it_says_what_it_is():
    text = repr(TiedEmbedding(9, 4, init="normal", std=0.1, output="swap", softcap=30.0, bias=True))
    assert text == (
        "TiedEmbedding(9, 4, init='normal', std=0.1, output='swap', softcap=30.0, bias=True)"
    )
    assert repr(TiedEmbedding(9, 4)) == "TiedEmbedding(9, 4, init='vocab')"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, 4), {}, ValueError, "num_embeddings: expected an integer ≥ 1, got 0"),
        ((9, 4.0), {}, TypeError, "embedding_dim: expected an integer"),
        ((9, 4), {"softcap": 0.0}, ValueError, "softcap: expected a finite number > 0, got 0.0"),
        ((9, 4), {"softcap": "30"}, TypeError, "softcap: expected a number"),
        ((9, 4), {"logit_scale": float("nan")}, ValueError, "logit_scale: expected a finite"),
        ((9, 4), {"input_scale": None}, TypeError, "input_scale: expected a finite number"),
        ((9, 4), {"bias": torch.zeros(9)}, TypeError, "bias: expected True or False, got Tensor"),
        ((9, 4), {"dtype": torch.int64}, ValueError, "dtype: expected a floating-point dtype"),
        ((9, 4), {"padding_idx": 9}, ValueError, "below num_embeddings = 9, got 9"),
        ((9, 4), {"padding_idx": -10}, ValueError, "padding_idx: expected a row of the table"),
        ((9, 4), {"padding_idx": 1.0}, TypeError, "padding_idx: expected an integer or None"),
    ],
)
def test_bad_options(arguments, options, error, words):
    with pytest.raises(error, match=words):
        TiedEmbedding(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda head: head(torch.zeros(3)), "ids: expected int64 or int32 tokens, got torch.float"),
        (lambda head: head.logits(torch.zeros(3, 5)), r"hidden: expected \(..., 6\)"),
        (lambda head: head.loss(torch.zeros(3, 5), torch.zeros(3).long()), "the embedding_dim of"),
        (lambda head: head.loss(torch.zeros(()), torch.zeros(3).long()), r"got \(\)"),
        (lambda head: head.loss(torch.zeros(3, 6), torch.zeros(3)), "targets: expected integer"),
        (
            lambda head: head.loss(torch.zeros(3, 6), torch.zeros(4).long()),
            r"targets: expected \(3",
        ),
        (lambda head: head.loss(torch.zeros(3, 6), torch.full((3,), 13)), "13"),
        (
            lambda head: head.loss(torch.zeros(3, 6), torch.zeros(3).long(), label_smoothing=1.0),
            "label_smoothing: expected 0 ≤ ε < 1",
        ),
        (
            lambda head: head.loss(torch.zeros(3, 6), torch.zeros(3).long(), reduction="max"),
            "reduction: expected one of",
        ),
    ],
)
def test_bad_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call(make())
