"""Models of transformers, of which nothing is known but what they hold."""

import copy
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear
from ropewalk.blocks.monarch.conversion import load_monarch_state_dict, merge, monarchize

SMALL: dict[str, Any] = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1}
LLAMA = {**SMALL, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None,
         "max_position_embeddings": 64, "initializer_range": 0.2}  # fmt: skip
# Name: class of the configuration, of the model, sizes, pattern, layers that it means.
MODELS: dict[str, tuple[str, str, dict[str, Any], str, int]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA, "*.mlp.*", 6),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": None},
        "transformer.h.*",
        8,
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 48, "d_model": 32, "d_ff": 56, "d_kv": 8, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0, "eos_token_id": None},
        "*.DenseReluDense.*",
        8,
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {**SMALL, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64},
        "*.encoder.*.dense",
        6,
    ),
}  # fmt: skip


def make(name: str, **changes: Any) -> Any:
    config_class, model_class, sizes, _, _ = MODELS[name]
    config = getattr(transformers, config_class)(**{**sizes, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    model.tie_weights()
    return model


@pytest.fixture
def tokens() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 48, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padded on the left, as for generating
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    more = {"decoder_input_ids": tokens["input_ids"][:, :5]} if "T5" in type(model).__name__ else {}
    with torch.no_grad():
        return model(**tokens, **more).logits


@pytest.mark.parametrize("name", MODELS)
def test_it_is_converted_saved_loaded_and_merged(name, tokens, tmp_path) -> None:
    model, pattern, count = make(name), *MODELS[name][3:]
    dense = logits(model, tokens)
    stock = {key: value.clone() for key, value in model.state_dict().items()}
    exact = copy.deepcopy(model)
    report = monarchize(exact, match=pattern, nblocks=4, rank=8)
    assert len(report.converted) == len(report.layers) == count
    torch.testing.assert_close(logits(exact, tokens), dense, atol=2e-3, rtol=1e-3)
    # Merged, its state dict is the stock one: of transposed layers, too.
    merge(exact)
    assert exact.state_dict().keys() == stock.keys()
    for key, value in exact.state_dict().items():
        torch.testing.assert_close(value, stock[key], atol=1e-4, rtol=1e-4)
    assert [type(m) for m in exact.modules()] == [type(m) for m in model.modules()]

    monarchize(model, match=pattern, nblocks=4, target_compression=2)
    small = logits(model, tokens)
    assert not torch.allclose(small, dense, atol=1e-2)
    save_file(
        {key: value.clone() for key, value in model.state_dict().items()},
        tmp_path / "x.safetensors",
    )
    other = make(name)
    load_monarch_state_dict(other, load_file(tmp_path / "x.safetensors"))
    torch.testing.assert_close(logits(other, tokens), small)
    torch.testing.assert_close(logits(copy.deepcopy(model), tokens), small)
    merge(model)
    torch.testing.assert_close(logits(model, tokens), small, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_it_generates_before_and_after(name, tokens) -> None:
    model, pattern = make(name), MODELS[name][3]

    def generate() -> torch.Tensor:
        return model.generate(**tokens, max_new_tokens=6, do_sample=False)

    before = generate()
    monarchize(model, match=pattern, nblocks=4, rank=8)
    assert torch.equal(generate(), before)
    merge(model)
    assert torch.equal(generate(), before)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_calibrated_and_trained(name, tokens) -> None:
    model, pattern = make(name, tie_word_embeddings=False), MODELS[name][3]
    labelled = {**tokens, "labels": tokens["input_ids"]}
    report = monarchize(
        model, match=pattern, nblocks=4, target_compression=2, calibration=[labelled] * 26
    )
    # T5's encoder and decoder read as many positions here, so that padding cannot be told.
    assert {row.calibration_rows for row in report.layers} == {26 * (24 if name == "t5" else 20)}
    assert all(row.output_error < row.relative_error for row in report.layers)
    model.train()
    model(**labelled).loss.backward()
    layers = [module for module in model.modules() if isinstance(module, MonarchLinear)]
    for layer in layers:
        assert layer.right.grad is not None
        assert layer.right.grad.abs().sum() > 0


def test_a_head_that_shares_the_embeddings_table_stays() -> None:
    model = make("llama", tie_word_embeddings=True)
    (row,) = monarchize(model, match="lm_head", nblocks=4, rank=1).layers
    assert row.skipped == "its weight is also that of model.embed_tokens"
    model = make("llama", tie_word_embeddings=False)
    (row,) = monarchize(model, match="lm_head", nblocks=4, rank=1).layers
    assert row.skipped is None
    assert model.get_output_embeddings() is model.lm_head


def test_experts_are_no_layers_and_the_report_says_so(tokens) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)
    model = transformers.MixtralForCausalLM(config).eval()
    report = monarchize(model, match="*.mlp.*", nblocks=4, rank=1)
    assert report.converted == ()
    assert all("only nn.Linear and Conv1D" in row.skipped for row in report.layers)
    assert {row.name.rsplit(".", 1)[-1] for row in report.layers} >= {"gate_up_proj", "down_proj"}
    assert len(monarchize(model, match="*.self_attn.*", nblocks=4, rank=1).converted) == 8
    assert logits(model, tokens).isfinite().all()


def test_near_names_are_suggested() -> None:
    with pytest.raises(ValueError, match=r"layers are model\.layers\.\*\.mlp\.\w+_proj"):
        monarchize(make("llama"), match="*.mlps.*", nblocks=4, rank=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_layers_under_peft_stay(tokens) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["gate_proj"], r=2)
    model = peft.get_peft_model(make("llama"), config)
    before = logits(model, tokens)
    report = monarchize(model, match="*gate_proj*", nblocks=4, rank=1)
    assert report.converted == ()
    assert len(report.skipped) == 8  # the wrapper, the layer inside and two factors, twice
    assert all("adapter first" in row.skipped for row in report.skipped)
    assert torch.equal(logits(model, tokens), before)
    assert len(monarchize(model, match="*up_proj", nblocks=4, rank=1).converted) == 2
