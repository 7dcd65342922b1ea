"""Monarch adapters inside of peft: made, trained, switched, saved, loaded and merged."""

import copy
import sys
import types

import peft
import pytest
import torch
import transformers
from torch import nn

from ropewalk.blocks.monarch import monarch_to_dense
from ropewalk.llm.monarch_peft import monarch_config, register_monarch
from ropewalk.llm.monarch_peft_layer import MonarchLoraLinear

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TARGETS = ["q_proj", "v_proj", "down_proj"]


def config(nblocks=(2, 4), **options):
    options = {"r": 2, "lora_alpha": 3, "target_modules": TARGETS, **options}
    return register_monarch(peft.LoraConfig(**options), nblocks=nblocks)


def teach(model, adapter="default", seed=0):
    """Left factors that have an effect."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, MonarchLoraLinear) and adapter in module.lora_B:
            left = module.lora_B[adapter].weight
            left.data.copy_(0.3 * torch.randn(left.shape, generator=generator))
    return model


def logits(model, tokens, **options):
    with torch.no_grad():
        return model(tokens, **options).logits


def layers(model):
    return [module for module in model.modules() if isinstance(module, MonarchLoraLinear)]


def test_it_starts_without_effect_and_only_factors_learn(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    model = peft.get_peft_model(model, config())
    assert len(layers(model)) == 2 * len(TARGETS)
    assert torch.equal(logits(model, tokens), expected)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * len(TARGETS)
    assert all(".lora_A.default.weight" in name or ".lora_B.default." in name for name in learning)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(5):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def test_a_layer_adds_its_scaled_matrix(make_model):
    model = teach(peft.get_peft_model(make_model(), config()))
    layer = layers(model)[0]
    x = torch.randn(2, 3, layer.in_features)
    matrix = monarch_to_dense(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    expected = layer.base_layer(x) + 3 / 2 * x @ matrix.mT
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.get_delta_weight("default"), 1.5 * matrix)


@pytest.mark.parametrize(
    ("options", "scaling", "rank"),
    [({}, 1.5, 2), ({"use_rslora": True}, 3 / 2**0.5, 2), ({"alpha_pattern": {"q_proj": 8}}, 4, 2),
     ({"rank_pattern": {"q_proj": 1}}, 3, 1)],
    ids=str,
)  # fmt: skip
def test_ranks_and_scalings_are_lora_s(make_model, options, scaling, rank):
    layer = layers(peft.get_peft_model(make_model(), config(**options)))[0]
    assert layer.scaling["default"] == pytest.approx(scaling)
    assert layer.lora_A["default"].weight.shape == (2, 4 * rank, 16)
    assert layer.lora_B["default"].weight.shape == (4, 8, 2 * rank)


def test_sizes_that_blocks_do_not_divide(make_model, tokens):
    model = make_model(intermediate_size=45)
    expected = logits(model, tokens)
    model = peft.get_peft_model(model, config(nblocks=4))
    assert torch.equal(logits(model, tokens), expected)
    with_it = logits(teach(model), tokens)
    torch.testing.assert_close(
        logits(model.merge_and_unload(), tokens), with_it, rtol=1e-4, atol=1e-4
    )


def test_adapters_are_switched_and_disabled(make_model, tokens):
    model = make_model()
    bare = logits(model, tokens)
    model = peft.get_peft_model(model, config()).eval()
    model.add_adapter("other", config(r=1, nblocks=2))
    teach(model, "default", 1)
    teach(model, "other", 2)
    first = logits(model, tokens)
    model.set_adapter("other")
    second = logits(model, tokens)
    assert not torch.allclose(first, second)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), bare)
    model.set_adapter("default")
    assert torch.equal(logits(model, tokens), first)
    mixed = logits(model, tokens, adapter_names=["other", "__base__"])
    torch.testing.assert_close(mixed, torch.stack((second[0], bare[1])), rtol=1e-4, atol=1e-4)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, tokens)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged, tokens), both, rtol=1e-4, atol=1e-4)
    model.delete_adapter("default")
    torch.testing.assert_close(logits(model, tokens), second)


@pytest.mark.parametrize("safe", [False, True])
def test_merging(make_model, tokens, safe):
    model = make_model()
    keys = list(model.state_dict())
    model = teach(peft.get_peft_model(model, config()))
    expected, weight = logits(model, tokens), layers(model)[0].weight.detach().clone()
    model.merge_adapter(safe_merge=safe)
    assert not torch.equal(layers(model)[0].weight, weight)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(layers(model)[0].weight, weight)
    plain = model.merge_and_unload(safe_merge=safe)
    assert list(plain.state_dict()) == keys
    assert not layers(plain)
    torch.testing.assert_close(logits(plain, tokens), expected, rtol=1e-4, atol=1e-4)


def test_unloading_gives_the_model_back(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    model = teach(peft.get_peft_model(model, config())).unload()
    assert not layers(model)
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("empty", [False, True])
def test_saved_and_loaded(make_model, tokens, tmp_path, empty):
    model = teach(peft.get_peft_model(make_model(), config(use_rslora=True)))
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    saved = {name: p for name, p in model.named_parameters() if "lora_" in name}
    size = sum(p.numel() * 4 for p in saved.values())
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < size + 4096
    loaded = peft.PeftModel.from_pretrained(
        make_model(), tmp_path, config=monarch_config(tmp_path), low_cpu_mem_usage=empty
    )
    assert torch.equal(logits(loaded, tokens), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    again = peft.PeftModel.from_pretrained(
        make_model(), tmp_path, config=monarch_config(tmp_path), is_trainable=True
    )
    assert {name for name, p in again.named_parameters() if p.requires_grad} == set(saved)


def test_a_second_adapter_is_loaded_beside_the_first(make_model, tokens, tmp_path):
    model = teach(peft.get_peft_model(make_model(), config(nblocks=2, r=3)))
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    other = peft.get_peft_model(make_model(), config())
    with pytest.raises(ValueError, match=r"q_proj: expected a configuration registered for Mon"):
        copy.deepcopy(other).load_adapter(tmp_path, "second")
    other.add_adapter("second", monarch_config(tmp_path))
    other.load_adapter(tmp_path, "second")
    other.set_adapter("second")
    assert torch.equal(logits(other, tokens), expected)


def test_without_the_registration_peft_refuses_the_shapes(make_model, tmp_path):
    peft.get_peft_model(make_model(), config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(make_model(), tmp_path)


def test_plain_lora_beside_monarch(make_model):
    """What the module's docstring says of the two on one layer."""
    plain = peft.LoraConfig(r=2, target_modules=TARGETS)
    model = peft.get_peft_model(make_model(), config())
    with pytest.raises(ValueError, match="got a plain one for adapter 'plain'"):
        model.add_adapter("plain", plain)
    model = peft.get_peft_model(make_model(), plain)
    model.add_adapter("monarch", config())
    assert not layers(model)


def test_transformers_own_adapters(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    model.add_adapter(config())
    assert len(layers(model)) == 2 * len(TARGETS)
    assert torch.equal(logits(model, tokens), expected)


def test_a_transposed_layer():
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        vocab_size=48,
        n_positions=32,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.GPT2LMHeadModel(settings).eval()
    tokens = torch.arange(3, 20)[None]
    expected = logits(model, tokens)
    model = peft.get_peft_model(model, config(target_modules=["c_attn", "c_fc"]))
    assert torch.equal(logits(model, tokens), expected)
    with_it = logits(teach(model), tokens)
    assert not torch.allclose(with_it, expected)
    torch.testing.assert_close(
        logits(model.merge_and_unload(), tokens), with_it, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(make_model, tokens, dtype):
    model = make_model().to(dtype)
    expected = logits(model, tokens)
    for autocast in (True, False):
        wrapped = peft.get_peft_model(
            copy.deepcopy(model), config(), autocast_adapter_dtype=autocast
        )
        factor = layers(wrapped)[0].lora_A["default"].weight
        assert factor.dtype == (torch.float32 if autocast else dtype)
        assert torch.equal(logits(wrapped, tokens), expected)
        taught = logits(teach(wrapped), tokens)
        merged = logits(wrapped.merge_and_unload(), tokens)
        assert taught.dtype == merged.dtype == dtype
        # A few roundings of two layers, far below what the adapter does.
        difference, effect = (merged - taught).abs().mean(), (taught - expected).abs().mean()
        assert difference < 0.05 * effect


class Quantised(nn.Module):
    """Integers, a scale, and a forward of its own."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        integers = torch.randint(-127, 127, (out_features, in_features), dtype=torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)

    def forward(self, x):
        return x @ (0.001 * self.weight.T)


def test_quantised_layers_are_adapted_and_not_merged(make_model, tokens):
    model = make_model()
    model.model.layers[1].self_attn.q_proj = Quantised(32, 32)
    expected = logits(model, tokens)
    model = peft.get_peft_model(model, config(target_modules=["q_proj"]))
    assert len(layers(model)) == 2
    assert torch.equal(logits(model, tokens), expected)
    assert not torch.allclose(logits(teach(model), tokens), expected)
    with pytest.raises(
        ValueError, match="merge: expected a layer with a plain weight, but its wei"
    ):
        layers(model)[1].merge()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: register_monarch({"r": 2}),
            TypeError,
            "config: expected a peft.LoraConfig, got d",
        ),
        (lambda: config(nblocks=0), ValueError, "nblocks: expected at least 1"),
        (lambda: config(nblocks=2.0), TypeError, "nblocks: expected an integer or two"),
        (lambda: config(use_dora=True), ValueError, "expected a LoraConfig without use_dora"),
        (lambda: config(lora_bias=True), ValueError, "expected a LoraConfig without lora_bias"),
        (lambda: config(use_qalora=True), ValueError, "expected a LoraConfig without use_qalora"),
        (lambda: config(ensure_weight_tying=True), ValueError, "without ensure_weight_tying"),
        (lambda: config(init_lora_weights="pissa"), ValueError, "expected True .* got 'pissa'"),
        (lambda: monarch_config("nowhere"), ValueError, "expected one that save_pretrained wrote"),
    ],
)
def test_bad_configurations(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nblocks": 40}, ValueError, r"layers.0.self_attn.q_proj: nblocks: expected"),
        ({"r": 99}, ValueError, "q_proj: rank: expected at most"),
        ({"target_modules": ["embed_tokens"]}, TypeError, "embed_tokens: linear: expected nn.Lin"),
    ],
)
def test_layers_that_do_not_fit(make_model, options, error, words):
    with pytest.raises(error, match=words):
        peft.get_peft_model(make_model(), config(**options))


def test_options_that_are_set_after_the_registration_are_refused_too(make_model):
    later = config()
    later.use_dora = True
    with pytest.raises(ValueError, match="config: expected a LoraConfig without use_dora"):
        peft.get_peft_model(make_model(), later)


@pytest.mark.parametrize("inference", [False, True])
def test_an_adapter_for_inference_does_not_learn(inference):
    layer = MonarchLoraLinear(
        nn.Linear(8, 8), "default", config(inference_mode=inference), r=2, lora_alpha=3
    )
    for factor in (layer.lora_A, layer.lora_B):
        assert all(p.requires_grad is not inference for p in factor.parameters())


@pytest.fixture
def one_rank():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("nblocks", [(2, 4), 3], ids=str)
def test_each_factor_can_be_sharded_by_itself(make_model, tokens, nblocks):
    """peft's policy for FSDP wraps lora_A and lora_B, so neither may read the other's weight."""
    plain = teach(peft.get_peft_model(make_model(), config(nblocks=nblocks)))
    model = copy.deepcopy(plain)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in layers(model):
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            torch.distributed.fsdp.fully_shard(factor, mesh=mesh)
    losses = [each(tokens, labels=tokens).loss for each in (plain, model)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    assert layers(plain)
    for expected, layer in zip(layers(plain), layers(model), strict=True):
        for name in ("lora_A", "lora_B"):
            whole = getattr(layer, name)["default"].weight.grad.full_tensor()
            torch.testing.assert_close(whole, getattr(expected, name)["default"].weight.grad)


def test_a_saved_lora_is_no_monarch(make_model, tmp_path):
    plain = peft.LoraConfig(r=2, target_modules=TARGETS)
    peft.get_peft_model(make_model(), plain).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got adapters of other kinds"):
        monarch_config(tmp_path)


def test_weighted_sums_of_factors_are_refused(make_model):
    model = peft.get_peft_model(make_model(), config())
    model.add_adapter("other", config())
    with pytest.raises(ValueError, match="expected a configuration registered for Monarch"):
        model.add_weighted_adapter(
            ["default", "other"], [0.5, 0.5], "sum", combination_type="linear"
        )


@pytest.mark.parametrize("found", [None, types.SimpleNamespace(__version__="0.9.0")], ids=str)
def test_peft_is_optional(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "peft", found)
    for call in (lambda: register_monarch(None), lambda: monarch_config(".")):
        with pytest.raises(ImportError, match=r"expected peft.*; pip install 'peft>=0.19'"):
            call()
