"""Layers that stay dense, each for its reason, and never silently."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from ropewalk.blocks.monarch import MonarchLinear, conversion
from ropewalk.blocks.monarch.adapter import MonarchAdapter, add_adapters, merge_adapters
from ropewalk.blocks.monarch.conversion import merge, monarchize


def linear(**options) -> nn.Linear:
    return nn.Linear(16, 16, **options)


def with_attribute(**attributes) -> nn.Linear:
    layer = linear()
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class Quantised(torch.Tensor):
    """As torchao marks its weights."""


class FakeQuantised(nn.Module):
    """As torch.ao's layers: the weight is a method."""

    in_features = out_features = 16

    def weight(self):
        return torch.zeros(16, 16)


class PeftLinear(nn.Module):
    """As peft wraps a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = linear()
        self.in_features = self.out_features = 16
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 2, bias=False)})


def of_dtype(dtype: torch.dtype) -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(torch.zeros(16, 16, dtype=dtype), requires_grad=False)
    return layer


def of_subclass() -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(torch.zeros(16, 16).as_subclass(Quantised))
    return layer


def hooked_state() -> nn.Linear:
    layer = linear()
    layer.register_state_dict_post_hook(lambda *args: None)
    return layer


def hooked_weight() -> nn.Linear:
    layer = linear()
    layer.weight.register_hook(lambda grad: grad)
    return layer


def accelerated() -> nn.Linear:
    layer = linear()
    layer.forward = types.MethodType(lambda self, x: x, layer)
    return layer


def compiled() -> nn.Linear:
    layer = linear()
    layer.compile()
    return layer


def with_buffer() -> nn.Linear:
    layer = linear()
    layer.register_buffer("scale", torch.ones(1))
    return layer


SKIPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (lambda: OwnForward(16, 16), "OwnForward has a forward of its own"),
    "parametrized": (lambda: parametrizations.weight_norm(linear()), "parametrized"),
    "pruned": (
        lambda: prune.l1_unstructured(linear(), "weight", amount=0.5),
        "no parameter but computed",
    ),
    "int8": (lambda: of_dtype(torch.int8), "quantised (Tensor of torch.int8)"),
    "uint8": (lambda: of_dtype(torch.uint8), "quantised"),
    "float8": (lambda: of_dtype(torch.float8_e4m3fn), "quantised (Tensor of torch.float8_e4m3fn)"),
    "torchao": (of_subclass, "quantised (Quantised of torch.float32)"),
    "torch.ao": (FakeQuantised, "quantised"),
    "complex": (lambda: of_dtype(torch.complex64), "complex"),
    "meta": (lambda: linear(device="meta"), "meta device"),
    "lazy": (lambda: nn.LazyLinear(16), "no size yet"),
    "empty": (lambda: nn.Linear(16, 0), "(0, 16), no matrix"),
    "Monarch": (lambda: MonarchLinear(16, 16, nblocks=2), "MonarchLinear already"),
    "state hooks": (hooked_state, "hooks on its state dict"),
    "weight hooks": (hooked_weight, "its weight has hooks"),
    "accelerate": (accelerated, "its forward was replaced"),
    "compiled": (compiled, "was compiled by itself"),
    "buffer": (with_buffer, "holds more than bias, weight: scale"),
    "embedding": (lambda: nn.Embedding(16, 16), "a parameter of Embedding"),
    "convolution": (lambda: nn.Conv1d(16, 16, 1), "a parameter of Conv1d"),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), "a parameter of Bilinear"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", SKIPPED)
def test_it_stays_and_the_report_says_why(case) -> None:
    make, reason = SKIPPED[case]
    layer = make()
    model = nn.ModuleDict({"odd": layer, "plain": linear()})
    report = monarchize(model, match="*", nblocks=4, rank=1)
    skipped = {row.name: row.skipped for row in report.skipped}
    assert reason in skipped["odd"]
    assert len(skipped) == len(report.layers) - 1
    assert model["odd"] is layer
    assert isinstance(model["plain"], MonarchLinear)
    assert reason in str(report)
    assert report.parameters_before == 256  # of the other one alone


def test_layers_that_are_read_and_not_called() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    report = monarchize(model, match="*", nblocks=4, rank=4)
    assert {row.name: row.skipped for row in report.skipped} == {
        "self_attn.in_proj_weight": "a parameter of MultiheadAttention, which is no linear layer; "
        "only nn.Linear and Conv1D are converted",
        "self_attn.out_proj": "is inside MultiheadAttention, which reads its weight and never "
        "calls it",
    }
    # The encoder's fast path reads the weights of the other two, too, and finds what they compute.
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x), atol=1e-5, rtol=1e-5)
    assert isinstance(model.linear1, MonarchLinear)


def test_weights_that_two_modules_hold() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(16, 16),
            "head": linear(bias=False),
            "a": linear(),
            "b": linear(),
        }
    )
    model["head"].weight = model["embedding"].weight
    # The same memory in two parameters, as a copy of .data makes it.
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    report = monarchize(model, match=["head", "a", "b"], nblocks=4, rank=1)
    assert [row.skipped for row in report.layers] == [
        "its weight is also that of embedding",
        "its weight is also that of b",
        "its weight is also that of a",
    ]


def test_weights_that_overlap_in_memory() -> None:
    table = torch.randn(112, 16)
    model = nn.Sequential(*(linear(bias=False) for _ in range(6)))
    for layer, first in zip(model, (0, 8, 64, 80, 24, 16), strict=True):
        layer.weight = nn.Parameter(table[first : first + 16])
    report = monarchize(model, match="*", nblocks=4, rank=1)
    # 64 and 80 touch; 0 and 8, 8 and 16, 16 and 24 have rows in common.
    assert [row.skipped for row in report.layers] == [
        "its weight or a part of it is also that of 1",
        "its weight or a part of it is also that of 0, 5",
        None,
        None,
        "its weight or a part of it is also that of 5",
        "its weight or a part of it is also that of 1, 4",
    ]


def test_a_weight_that_the_model_itself_holds() -> None:
    model = nn.Sequential(linear(), linear())
    model.register_parameter("table", model[1].weight)
    report = monarchize(model, match=["0", "1"], nblocks=4, rank=1)
    assert [row.skipped for row in report.layers] == [
        None,
        "its weight is also that of the model itself",
    ]


def test_layers_inside_of_adapters() -> None:
    model = nn.ModuleDict({"peft": PeftLinear(), "ours": MonarchAdapter(linear(), nblocks=2)})
    report = monarchize(model, match="*", nblocks=4, rank=1)
    reasons = {row.name: row.skipped for row in report.layers}
    assert "wraps a layer" in reasons["peft"]
    assert "wraps a layer" in reasons["ours"]
    for name in ("peft.base_layer", "peft.lora_A.default", "ours.base_layer"):
        assert "merge or unload the adapter first" in reasons[name]
    assert report.converted == ()
    assert "adapter first: merge_adapters(model)" in reasons["ours.base_layer"]
    # A pattern that fits nothing is not answered with what adapters hold.
    with pytest.raises(ValueError, match=r"its layers are peft, ours$"):
        monarchize(model, match="*.base", nblocks=4, rank=1)
    # The adapter's own matrices are no layers of the model.
    merged = merge(model)
    assert merged.converted == ()
    assert len(merged.skipped) == 1


def test_merging_names_the_way_out_of_an_adapter() -> None:
    model = nn.Sequential(MonarchLinear(16, 16, nblocks=4))
    add_adapters(model, match="0", nblocks=2)
    report = merge(model)
    assert report.converted == ()
    (reason,) = (row.skipped for row in report.layers if row.name == "0.base_layer")
    assert "merge or unload the adapter first: merge_adapters(model)" in (reason or "")
    merge_adapters(model)
    merge(model)
    assert not any(isinstance(module, MonarchLinear) for module in model.modules())


def test_layers_inside_of_what_holds_their_parameters() -> None:
    class DistributedDataParallel(nn.Module):  # known by its name, as it needs a process group
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential(linear())

    (row,) = monarchize(DistributedDataParallel(), match="*", nblocks=4, rank=1).layers
    assert "convert before wrapping" in row.skipped


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules() -> None:
    for scripted in (torch.jit.script(nn.Sequential(linear())), torch.jit.script(linear())):
        with pytest.raises(TypeError, match=r"convert before torch\.jit\.script"):
            monarchize(scripted, match="*", nblocks=4, rank=1)
        with pytest.raises(TypeError, match=r"convert before torch\.jit\.script"):
            merge(scripted)
    traced = torch.jit.trace(nn.Sequential(linear(), nn.ReLU()), torch.zeros(1, 16))
    parts = [
        linear(),
        torch.jit.script(nn.Sequential(linear())),
        torch.jit.script(linear()),
        torch.jit.script(nn.Embedding(16, 16)),
        traced,
    ]
    model = nn.Sequential(*parts)
    report = monarchize(model, match="*", nblocks=4, rank=1)
    assert [row.name for row in report.converted] == ["0"]
    assert {row.name.split(".")[0] for row in report.skipped} == {"1", "2", "3", "4"}
    assert all("before torch.jit.script" in (row.skipped or "") for row in report.skipped)
    assert list(model)[1:] == parts[1:]
    merge(model)
    assert type(model[0]) is nn.Linear


def test_a_sharded_weight(monkeypatch) -> None:
    from ropewalk.blocks.monarch.conversion import obstacles

    monkeypatch.setattr(obstacles, "is_sharded", lambda tensor: True)
    (row,) = monarchize(nn.Sequential(linear()), match="*", nblocks=4, rank=1).layers
    assert "sharded (DTensor)" in row.skipped


def test_matrices_without_a_layer_are_named_where_the_pattern_means_them() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up = nn.Parameter(torch.zeros(4, 32, 16))
            self.scale = nn.Parameter(torch.zeros(16))
            self.act = nn.GELU()

    model = nn.ModuleDict({"experts": Experts(), "gate": linear()})
    for pattern in ("*experts*", "experts", "experts.gate_up", "experts.*"):
        (row,) = monarchize(model, match=pattern, nblocks=4, rank=1).layers
        assert row.name == "experts.gate_up"
        assert row.parameters_before == row.parameters_after == 4 * 32 * 16
        assert "only nn.Linear and Conv1D are converted" in row.skipped
    assert isinstance(model["gate"], nn.Linear)


def test_merging_leaves_what_it_could_not_give_back() -> None:
    layer = MonarchLinear(16, 16, nblocks=2)
    layer.register_state_dict_post_hook(lambda *args: None)
    model = nn.Sequential(layer, MonarchLinear(16, 16, nblocks=2))
    report = merge(model)
    assert [row.skipped is None for row in report.layers] == [False, True]
    assert model[0] is layer
    meta = nn.Sequential(MonarchLinear(16, 16, nblocks=2, device="meta"))
    with pytest.raises(ValueError, match="0: expected factors with values"):
        merge(meta)


def test_nothing_of_transformers_is_imported() -> None:
    names = [name for name in sys.modules if name.startswith(conversion.__name__)]
    assert len(names) > 10
    for name in names:
        for value in vars(sys.modules[name]).values():
            module = getattr(value, "__module__", None) or ""
            assert not module.startswith(("transformers", "peft")), (name, value)
