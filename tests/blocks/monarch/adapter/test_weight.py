"""The weight that an adapted layer shows to models which read it instead of calling the layer."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear
from ropewalk.blocks.monarch.adapter import MonarchAdapter, adapters_of, add_adapters

F64 = torch.float64


@pytest.mark.parametrize("kind", ["linear", "transposed", "factors"])
def test_it_is_what_the_layer_multiplies_by(kind, taught, transposed):
    base = {
        "linear": lambda: nn.Linear(12, 9),
        "transposed": lambda: transposed(9, 12),
        "factors": lambda: MonarchLinear(12, 9, nblocks=3),
    }[kind]()
    layer = taught(MonarchAdapter(base, nblocks=3, scaling=0.5, name="a"))
    layer.add("b", nblocks=(2, 3))
    taught(layer)
    x = torch.randn(4, 12)

    def by_weight():
        matrix = layer.weight.mT if kind == "transposed" else layer.weight
        return nn.functional.linear(x, matrix, layer.bias)

    for active in ("a", {"b": -2.0, "a": 0.3}, []):
        layer.activate(active)
        torch.testing.assert_close(by_weight(), layer(x))
    assert torch.equal(layer.weight, base.weight)
    if kind == "factors":
        return
    layer.activate(["a", "b"])
    layer.merge("b")
    torch.testing.assert_close(by_weight(), layer(x))
    layer.merge()
    assert layer.weight is base.weight


def test_it_passes_gradients_to_the_adapter(adapted):
    layer, x = adapted(), torch.randn(4, 13, dtype=F64)
    factors = list(layer.branch("default").parameters())
    called = torch.autograd.grad(layer(x).square().sum(), factors)
    read = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.autograd.grad(read.square().sum(), factors), called)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_rounded_once(adapted, dtype):
    layer = adapted(dtype=dtype)
    read = layer.weight
    layer.merge()
    assert read.dtype == dtype
    assert torch.equal(read, layer.base_layer.weight)


def test_a_quantised_weight_is_shown_as_it_is():
    base = nn.Linear(8, 8)
    base.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    layer = MonarchAdapter(base, nblocks=2)
    assert layer.weight is base.weight
    assert layer.branch("default").right.dtype == torch.float32


# In evaluation torch's encoder reads the weights of its layers and never calls them.


def encoder(taught):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    before = model(X).detach()
    add_adapters(model, match="*linear*", nblocks=2, rank=2)
    return taught(model), before


X = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1))
PADDED = torch.tensor([[False] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_adapters_count_on_the_fast_path_of_an_encoder(taught):
    model, before = encoder(taught)
    for padding in (None, PADDED):
        with torch.no_grad():
            fast = model(X, src_key_padding_mask=padding)
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                slow = model(X, src_key_padding_mask=padding)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        kept = slice(None) if padding is None else ~padding
        torch.testing.assert_close(fast[kept], slow[kept], rtol=1e-4, atol=1e-5)
    assert (model(X) - before).abs().max() > 0.05
    loss = model(X).square().sum()  # gradients are needed: not the fast path, frozen as the rest is
    loss.backward()
    for _, layer in adapters_of(model):
        assert layer.branch("default").left.grad is not None


@pytest.mark.parametrize("merged", [False, True])
def test_assigning_sets_the_weight_without_adapters(adapted, taught, merged):
    layer = adapted()
    if merged:
        layer.merge()
    weight = nn.Parameter(torch.randn(18, 13, dtype=F64))
    bias = nn.Parameter(torch.randn(18, dtype=F64))
    layer.weight, layer.bias = weight, bias
    assert layer.unmerged_weight is weight
    assert layer.base_layer.bias is bias
    assert layer.merged == (("default",) if merged else ())
    assert set(dict(layer.named_parameters())) == {
        "base_layer.weight", "base_layer.bias", "adapters.default.right", "adapters.default.left"
    }  # fmt: skip
    x = torch.randn(4, 13, dtype=F64)
    expected = nn.functional.linear(x, weight, bias) + layer.branch("default")(x)
    torch.testing.assert_close(layer(x), expected)
