"""Adapters of whole models: put in, chosen, taken out and merged, all or none."""

import copy

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear, monarchize
from ropewalk.blocks.monarch.adapter import (
    MonarchAdapter,
    activate_adapters,
    adapters_of,
    add_adapters,
    mark_only_adapters_trainable,
    merge_adapters,
    remove_adapters,
)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Model(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(2))
        self.again = self.blocks[0]  # the same block at two places
        self.head = nn.Linear(dim, 11, bias=False)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in (*self.blocks, self.again):
            x = block(x)
        return self.head(x)


IDS = torch.arange(11)
UP_DOWN = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]


def snapshot(model):
    """What must be found again: structure, values, and what learns."""
    named = model.named_parameters(remove_duplicate=False)
    return (
        [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)],
        [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in named],
    )


def assert_same(before, after):
    assert before[0] == after[0]
    for (name, identity, learns, value), other in zip(before[1], after[1], strict=True):
        assert (name, identity, learns) == other[:3]
        assert torch.equal(value, other[3])


def test_adding_changes_nothing_and_removing_everything_back():
    model = Model()
    model.head.requires_grad_(False)
    before, expected = snapshot(model), model(IDS)
    assert add_adapters(model, match="*blocks*", nblocks=2) == UP_DOWN
    assert [name for name, _ in adapters_of(model)] == UP_DOWN
    assert isinstance(model.blocks[0].up, MonarchAdapter)
    assert model.again.up is model.blocks[0].up
    assert torch.equal(model(IDS), expected)
    assert remove_adapters(model) == UP_DOWN
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("match", "layers"),
    [
        ("*.up", ["blocks.0.up", "blocks.1.up"]),
        (["*.up", "head"], ["blocks.0.up", "blocks.1.up", "head"]),
        ("*", [*UP_DOWN, "head"]),
        (lambda name, module: getattr(module, "out_features", 0) == 16, UP_DOWN[1::2]),
    ],
    ids=["pattern", "patterns", "everything", "function"],
)
def test_matching(match, layers):
    model = Model()
    assert add_adapters(model, match=match, nblocks=2) == layers


def test_a_second_adapter_goes_beside_the_first(taught):
    model, expected = Model(), Model()(IDS)
    add_adapters(model, match="*.up", nblocks=2, name="a")
    assert add_adapters(model, match="*", nblocks=2, rank=2, name="b") == [*UP_DOWN, "head"]
    taught(model)
    assert model.blocks[0].up.active == {"a": 1.0}
    assert model.blocks[0].down.active == {"b": 1.0}
    activate_adapters(model, "a")
    with_a = model(IDS)
    activate_adapters(model, {"b": 2.0})
    assert model.blocks[0].up.active == {"b": 2.0}
    with_b = model(IDS)
    activate_adapters(model, [])
    assert torch.equal(model(IDS), expected)
    for changed in (with_a, with_b):
        assert not torch.allclose(changed, expected)
    activate_adapters(model, ["a", "b"])
    assert model.head.active == {"b": 1.0}
    assert remove_adapters(model, name="b") == [*UP_DOWN[1::2], "head"]
    torch.testing.assert_close(model(IDS), with_a)
    assert isinstance(model.head, nn.Linear)
    assert remove_adapters(model, name="a") == UP_DOWN[::2]
    assert torch.equal(model(IDS), expected)


def test_only_adapters_learn():
    model = Model()
    add_adapters(model, match="*.up", nblocks=2, name="a")
    add_adapters(model, match="*.up", nblocks=2, name="b")
    mark_only_adapters_trainable(model)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 2 * 2
    assert all(".adapters." in name for name in learning)
    mark_only_adapters_trainable(model, name="b")
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 2
    assert all(".adapters.b." in name for name in learning)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    activate_adapters(model, "b")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(IDS), IDS.flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in frozen.items():
        assert torch.equal(model.get_parameter(name), value)


def test_merging_gives_plain_layers(taught):
    model = Model()
    model.blocks[1].up.requires_grad_(False)
    learns = [p.requires_grad for p in model.parameters()]
    plain = copy.deepcopy(model)
    add_adapters(model, match="*", nblocks=2, scaling=0.5)
    taught(model)
    expected = model(IDS)
    model.blocks[0].up.merge()  # one of them is merged already
    assert merge_adapters(model) == [*UP_DOWN, "head"]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [p.requires_grad for p in model.parameters()] == learns
    assert {type(module) for module in model.modules()} == {type(m) for m in plain.modules()}
    torch.testing.assert_close(model(IDS), expected)
    assert not torch.allclose(model(IDS), plain(IDS))


def test_removing_unmerges(taught):
    model, expected = Model(), Model()(IDS)
    add_adapters(model, match="*", nblocks=2, name="a")
    add_adapters(model, match="*.up", nblocks=2, name="b")
    taught(model)
    activate_adapters(model, ["a", "b"])
    for _, layer in adapters_of(model):
        layer.merge()
    remove_adapters(model, name="b")
    assert model.blocks[0].up.merged == ("a",)
    activated = model(IDS)
    model.blocks[0].up.unmerge()
    torch.testing.assert_close(model(IDS), activated)
    remove_adapters(model)
    assert torch.equal(model(IDS), expected)


def test_hooks_stay_on_the_layer(taught):
    model, seen = Model(), []
    handle = model.head.register_forward_hook(lambda *given: seen.append(given[2].shape))
    add_adapters(model, match="head", nblocks=2)
    model(IDS)
    remove_adapters(model)
    model(IDS)
    assert len(seen) == 2
    handle.remove()
    model(IDS)
    assert len(seen) == 2


def test_compiled_models_are_found_and_named_without_the_compiler(taught):
    model = Model()
    add_adapters(model, match="*.up", nblocks=2)
    taught(model)
    compiled = torch.compile(model, backend="eager")
    assert [name for name, _ in adapters_of(compiled)] == UP_DOWN[::2]


def tied():
    model = Model()
    model.head.weight = model.embedding.weight
    add_adapters(model, match="head", nblocks=2)
    return model


def tied_and_merged():
    model = tied()
    model.head.branch("default").left.data.fill_(0.1)
    model.head.merge()
    return model


class Integers(nn.Module):
    """A quantised layer."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.ones(out_features, in_features, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return x @ self.weight.T.to(x.dtype)


def half_quantised():
    model = Model()
    model.blocks[1].down = Integers(32, 16)
    add_adapters(model, match="*blocks*", nblocks=2)
    return model


def with_attention():
    model = Model()
    model.attention = nn.MultiheadAttention(16, 2)
    return model


def adapted():
    model = Model()
    add_adapters(model, match="*.up", nblocks=2)
    return model


def merged():
    model = adapted()
    model.blocks[1].up.branch("default").left.data.fill_(0.1)
    model.blocks[1].up.merge()
    return model


def overflowing():
    model = adapted()
    model.blocks[1].up.branch("default").left.data.fill_(float("inf"))
    return model


@pytest.mark.parametrize(
    ("make", "call", "error", "words"),
    [
        (Model, lambda m: add_adapters(m, match="*.q_proj"), ValueError, "match: expected a patt"),
        (Model, lambda m: add_adapters(m, match=3), TypeError, "match: expected a pattern"),
        (Model, lambda m: add_adapters(m, match="embedding"), ValueError, "fits only embeddings"),
        (Model, lambda m: add_adapters(m, match="*", name="a.b"), ValueError, "name: expected a w"),
        # The head has 11 outputs, too few for blocks of the others' number.
        (Model, lambda m: add_adapters(m, match="*", nblocks=(1, 16)), ValueError, "head: nblocks"),
        (adapted, lambda m: add_adapters(m, match="*", nblocks=2), ValueError, r"0\.up: name: exp"),
        (
            adapted,
            lambda m: add_adapters(m, match="*", nblocks=(1, 16), name="b"),
            ValueError,
            "head: nblocks: expected",
        ),
        (
            adapted,
            lambda m: add_adapters(m, match="*.base_layer", name="b"),
            ValueError,
            "or parts of adapters that are there",
        ),
        (
            with_attention,
            lambda m: add_adapters(m, match="*", nblocks=2),
            ValueError,
            "attention.out_proj: linear: expected a layer that is called",
        ),
        (
            lambda: nn.Linear(8, 8),
            lambda m: add_adapters(m, match="*", nblocks=2),
            ValueError,
            r"model: expected one with layers inside of it, .* MonarchAdapter\(layer\)",
        ),
        (Model, lambda m: add_adapters([m], match="*"), TypeError, "model: expected a module"),
        (Model, merge_adapters, ValueError, "expected one with Monarch adapters, got a Model"),
        (Model, remove_adapters, ValueError, "call add_adapters first"),
        (Model, mark_only_adapters_trainable, ValueError, "expected one with Monarch adapters"),
        (Model, lambda m: activate_adapters(m, "a"), ValueError, "expected one with Monarch"),
        (adapted, lambda m: activate_adapters(m, "b"), KeyError, "expected one of default, got"),
        (adapted, lambda m: remove_adapters(m, name="b"), KeyError, "expected one of default"),
        (
            adapted,
            lambda m: mark_only_adapters_trainable(m, name="b"),
            KeyError,
            "expected one of default",
        ),
        (merged, lambda m: activate_adapters(m, []), ValueError, r"blocks.1.up: .* unmerge\(\)"),
        (tied, merge_adapters, ValueError, "head: expected a weight of its own, got one shared wi"),
        (tied_and_merged, merge_adapters, ValueError, "head: expected a weight of its own, got on"),
        (half_quantised, merge_adapters, ValueError, r"blocks.1.down: .* quantised .* torch.int8"),
        (overflowing, merge_adapters, ValueError, "merge: expected a sum of finite numbers"),
        (
            lambda: MonarchAdapter(nn.Linear(8, 8), nblocks=2),
            merge_adapters,
            ValueError,
            r"take its merge\(\) and merged_layer\(\)",
        ),
        (
            lambda: MonarchAdapter(nn.Linear(8, 8), nblocks=2),
            remove_adapters,
            ValueError,
            r"take its without_adapters\(\)",
        ),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(make, call, error, words):
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        call(model)
    assert_same(before, snapshot(model))


def test_a_refused_merge_leaves_merged_what_was(taught):
    model = Model()
    add_adapters(model, match="*", nblocks=2, name="a")
    add_adapters(model, match="*.up", nblocks=2, name="b")
    taught(model)
    activate_adapters(model, ["a", "b"])
    first, second, last = model.blocks[0].up, model.blocks[1].up, model.head
    first.merge()
    second.merge("b")
    weights = [first.weight, second.weight.detach().clone()]
    last.branch("a").left.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="merge: expected a sum of finite numbers"):
        merge_adapters(model)
    assert (first.merged, second.merged, last.merged) == (("a", "b"), ("b",), ())
    assert first.weight is weights[0]
    assert torch.equal(second.weight, weights[1])


def test_a_single_adapted_layer_can_be_taken_apart_by_hand():
    linear, x = nn.Linear(8, 8), torch.randn(3, 8)
    layer = MonarchAdapter(linear, nblocks=2)
    layer.branch("default").left.data.fill_(0.5)
    expected = layer(x)
    layer.merge()
    plain = layer.merged_layer()
    assert plain is linear
    torch.testing.assert_close(plain(x), expected)
    assert plain.weight.requires_grad


def test_a_refused_removal_leaves_every_layer_as_it_was(taught):
    model = Model()
    add_adapters(model, match="*.up", nblocks=2, name="a")
    add_adapters(model, match="*", nblocks=2, name="b")
    taught(model)
    first, last = model.blocks[0].up, model.blocks[1].up
    for layer in (first, last):
        layer.activate(["a", "b"])
        layer.merge()
    last.branch("a").left.data.fill_(float("nan"))  # so that it cannot be merged without b
    structure, weights = snapshot(model)[0], [first.weight, last.weight]
    with pytest.raises(ValueError, match="merge: expected a sum of finite numbers"):
        remove_adapters(model, name="b")
    assert snapshot(model)[0] == structure
    assert first.weight is weights[0]
    assert last.weight is weights[1]
    assert [layer.merged for layer in (first, last)] == [("a", "b")] * 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_monarchized_model_becomes_dense_with_its_adapters(taught, dtype):
    model = Model().to(dtype)
    model.blocks[1].up.requires_grad_(False)
    monarchize(model, match="*blocks*", nblocks=2, rank=2)
    assert isinstance(model.blocks[0].up, MonarchLinear)
    add_adapters(model, match=["*.up", "head"], nblocks=2, name="a")
    add_adapters(model, match="*.down", nblocks=2, name="idle")
    taught(model)
    activate_adapters(model, {"a": 0.5})
    expected = model(IDS)
    with pytest.raises(ValueError, match=r"but factors; merge_adapters\(model\) makes it dense"):
        model.blocks[0].up.merge()
    biases = [block.up.bias for block in model.blocks]
    merge_adapters(model)
    tolerance = 8 * torch.finfo(dtype).eps * expected.detach().abs().max().item()
    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=tolerance)
    for block, bias in zip(model.blocks, biases, strict=True):
        assert type(block.up) is nn.Linear
        assert block.up.bias is bias
        assert type(block.down) is MonarchLinear  # nothing was active there
    assert model.blocks[0].up.weight.requires_grad
    assert model.blocks[0].up.weight.dtype == dtype
    assert not model.blocks[1].up.weight.requires_grad
    assert not any(isinstance(module, MonarchAdapter) for module in model.modules())


def test_a_monarchized_transposed_layer_becomes_what_it_was(taught, transposed):
    torch.manual_seed(0)
    model = nn.Sequential(transposed(12, 9), nn.ReLU(), nn.Linear(12, 8))
    x = torch.randn(4, 9)
    monarchize(model, match="0", nblocks=3, rank=2)
    add_adapters(model, match="*", nblocks=2)
    taught(model)
    model[2].branch("default").left.data.fill_(float("inf"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"^2: merge: expected a sum of finite numbers"):
        merge_adapters(model)
    assert_same(before, snapshot(model))
    remove_adapters(taught(model), name="default")
    add_adapters(model, match="0", nblocks=2)
    taught(model)
    expected = model(x)
    merge_adapters(model)
    assert type(model[0]) is transposed
    assert model[0].weight.shape == (9, 12)
    torch.testing.assert_close(model(x), expected)
