"""Exported checkpoints: reloaded, they are the plugged model; what they cannot say is said."""

import json
import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from ropewalk.blocks.rotary import (
    Default,
    DualChunk,
    DynamicNTK,
    LeakyReRoPE,
    Linear,
    Llama3,
    LogN,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    Plain,
    ReRoPE,
    SelfExtend,
    YaRN,
)
from ropewalk.llm import export, is_plugged, plug, trained_length
from ropewalk.llm.config_note import variant_text
from ropewalk.llm.variants import parse_variant

RULES = [
    Default(),
    Linear(factor=4.0),
    NTKAware(factor=4.0),
    NTKFixed(factor=4.0),
    NTKMixed(factor=4.0),
    DynamicNTK(factor=2.0, original_length=16),
    YaRN(factor=4.0, original_length=16),
    Llama3(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=16),
    LongRoPE((1.0, 1.0, 1.1, 1.2), (1.0, 2.0, 3.0, 4.0), 16, factor=4.0),
]
# The rotary dimension is 4 in these two.
PARTIAL = {"gpt-neox", "glm"}


@torch.no_grad()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


def stored(path):
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_survives_export(make_model, tokens, tmp_path, rule):
    model = make_model()
    with plug(model, frequency=rule):
        expected = logits(model, tokens)
        report = export(model, tmp_path / "out")
        assert is_plugged(model)
    reloaded = AutoModelForCausalLM.from_pretrained(report.path).eval()
    torch.testing.assert_close(logits(reloaded, tokens), expected, atol=1e-5, rtol=1e-5)
    assert report.variant is None
    assert "variant" not in stored(report.path).get("ropewalk", {})
    assert trained_length(reloaded) == 64


@pytest.mark.parametrize("rule", [NTKAware(factor=4.0), NTKMixed(factor=4.0)], ids=str)
def test_every_architecture_survives_export(architecture, make_model, tokens, tmp_path, rule):
    model = make_model(architecture)
    with plug(model, frequency=rule):
        expected = logits(model, tokens)
        path = export(model, tmp_path / "out").path
    reloaded = AutoModelForCausalLM.from_pretrained(path).eval()
    torch.testing.assert_close(logits(reloaded, tokens), expected, atol=1e-5, rtol=1e-5)


def phi3_rules():
    return [rule for rule in RULES if rule.name != "dynamic-ntk"] + [
        LongRoPE((1.0,) * 4, (2.0,) * 4, 16, factor=4.0),
        YaRN(factor=4.0, original_length=16, attention_scaling=1.3),
    ]


@pytest.mark.parametrize("rule", phi3_rules(), ids=str)
@pytest.mark.parametrize("original_length", [16, 64])
def test_phi3_gets_every_rule_as_longrope_factors(make_model, tmp_path, rule, original_length):
    model = make_model("phi3", original_max_position_embeddings=original_length)
    # Up to the rule's original length, 16, and beyond.
    inputs = [torch.randint(2, 48, (1, length)) for length in (9, 16, 17, 40)]
    with plug(model, frequency=rule):
        expected = [logits(model, tokens) for tokens in inputs]
        exported = export(model, tmp_path / "out").path
        model.save_pretrained(tmp_path / "saved")
    for path in (exported, tmp_path / "saved"):
        reloaded = AutoModelForCausalLM.from_pretrained(path).eval()
        for tokens, one in zip(inputs, expected, strict=True):
            torch.testing.assert_close(logits(reloaded, tokens), one, atol=2e-5, rtol=1e-5)
        assert trained_length(reloaded) == original_length
    assert model.config.original_max_position_embeddings == original_length


def test_a_rule_the_architecture_cannot_say_leaves_nothing(make_model, tmp_path):
    model = make_model("phi3")
    refused = pytest.raises(ValueError, match=r"Phi3Config cannot say DynamicNTK.*longrope")
    with plug(model, frequency=DynamicNTK(factor=2.0, original_length=16)), refused:
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(make_model, tmp_path):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError("no space left")

    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(OSError, match="no space left"):
            export(make_model(), tmp_path / name, tokenizer=FullDisk())
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_the_trained_length_survives_beside_the_variant(make_model, tmp_path):
    model = make_model()
    with (
        plug(model, frequency=NTKAware(factor=4.0), distance=ReRoPE(window=4)),
        pytest.warns(UserWarning, match="without it"),
    ):
        path = export(model, tmp_path / "out").path
    assert stored(path)["max_position_embeddings"] == 256
    assert stored(path)["ropewalk"] == {"variant": "rerope:window=4", "trained_length": 64}
    reloaded = AutoModelForCausalLM.from_pretrained(path)
    assert trained_length(reloaded) == 64
    # And once more.
    with plug(reloaded, frequency=Default()):
        again = export(reloaded, tmp_path / "again").path
    assert trained_length(AutoModelForCausalLM.from_pretrained(again)) == 64


def test_an_unplugged_model_is_written_as_it_is(architecture, make_model, tokens, tmp_path):
    model = make_model(architecture)
    report = export(model, tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(reloaded, tokens), logits(model, tokens))
    assert report.notes == ()
    assert (tmp_path / "model.safetensors").exists()


def test_older_readers_find_the_rule_too(make_model, tmp_path):
    # transformers 4 and what was built on it read these two and would ignore rope_parameters.
    model = make_model()
    with plug(model, frequency=NTKAware(factor=4.0)):
        export(model, tmp_path / "ntk")
    with plug(model, frequency=Linear(factor=4.0)):
        export(model, tmp_path / "linear")
    ntk, linear = stored(tmp_path / "ntk"), stored(tmp_path / "linear")
    assert ntk["rope_theta"] == ntk["rope_parameters"]["rope_theta"] == 10000.0 * 4 ** (8 / 6)
    assert ntk["rope_scaling"] is None
    assert linear["rope_theta"] == 10000.0
    assert linear["rope_scaling"]["rope_type"] == "linear"
    assert linear["rope_scaling"]["factor"] == 4.0


def test_the_length_is_what_readers_derive_the_context_from(make_model, tmp_path):
    # vLLM multiplies by the factor itself under linear, and dynamic means the trained length.
    for rule, length in (
        (NTKAware(factor=4.0), 256),
        (NTKFixed(factor=2.0), 128),
        (YaRN(factor=4.0, original_length=64), 256),
        (Linear(factor=4.0), 64),
        (DynamicNTK(factor=4.0, original_length=64), 64),
    ):
        model = make_model()
        with plug(model, frequency=rule):
            path = export(model, tmp_path / rule.name).path
        assert stored(path)["max_position_embeddings"] == length


def test_longrope_factors_carry_no_temperature(make_model, tmp_path):
    model = make_model()
    with plug(model, frequency=NTKMixed(factor=4.0)):
        entry = export(model, tmp_path / "out").rope_parameters
    assert entry["rope_type"] == "longrope"
    assert entry["short_factor"] == entry["long_factor"]
    assert entry["attention_factor"] == entry["short_mscale"] == entry["long_mscale"] == 1.0


def test_a_replaced_scaling_keeps_the_trained_length(make_model, tmp_path):
    model = make_model("llama3-scaled")
    with plug(model, frequency=NTKAware(factor=8.0)):
        assert trained_length(model) == 16
        path = export(model, tmp_path / "out").path
    assert stored(path)["max_position_embeddings"] == 128


def test_a_multimodal_checkpoint_has_the_rule_in_its_text_config(make_model, tokens, tmp_path):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=make_model("gemma3").config, vision_config=vision, mm_tokens_per_image=1
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with plug(model, frequency=NTKAware(factor=4.0)):
        expected = logits(model, tokens)
        path = export(model, tmp_path / "out").path
    assert stored(path)["text_config"]["max_position_embeddings"] == 256
    reloaded = transformers.Gemma3ForConditionalGeneration.from_pretrained(path).eval()
    torch.testing.assert_close(logits(reloaded, tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_distance_rule_is_noted_and_warned_about(make_model, tokens, tmp_path):
    model = make_model()
    native = logits(model, tokens)
    with (
        plug(model, distance=ReRoPE(window=4), log_n_length=LogN(8, clamp=False)),
        pytest.warns(UserWarning, match="will run this checkpoint without it"),
    ):
        report = export(model, tmp_path / "out")
    assert report.variant == "rerope:window=4+log-n:length=8,clamp=false"
    assert stored(report.path)["ropewalk"] == {"variant": report.variant}
    assert report.rope_parameters == model.config.rope_parameters
    reloaded = AutoModelForCausalLM.from_pretrained(report.path).eval()
    assert torch.equal(logits(reloaded, tokens), native)
    # An unplugged model is written as it is; what is plugged replaces the note.
    again = stored(export(reloaded, tmp_path / "again").path)
    assert again["ropewalk"] == {"variant": report.variant}
    with plug(reloaded, frequency=NTKAware(factor=2.0)):
        other = stored(export(reloaded, tmp_path / "other").path)
    assert other["ropewalk"] == {"trained_length": 64}


def test_frequency_and_distance_together_reload_and_plug_to_the_same(
    architecture, make_model, tokens, tmp_path
):
    model = make_model(architecture)
    frequency = NTKAware(factor=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with plug(model, frequency=frequency, distance=ReRoPE(window=4), log_n_length=8):
            expected = logits(model, tokens)
            report = export(model, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(report.path).eval()
    variant = parse_variant(stored(report.path)["ropewalk"]["variant"])
    with variant.resolve(trained_length(model)).plug(reloaded):
        torch.testing.assert_close(logits(reloaded, tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "distance",
    [
        ReRoPE(window=4),
        LeakyReRoPE(window=4, factor=0.125),
        SelfExtend(group=2, window=4),
        DualChunk(chunk=8, local=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("log_n", [None, LogN(8), LogN(8, clamp=False)], ids=str)
def test_the_note_is_a_variant_that_parses_back(distance, log_n):
    text = variant_text(distance, log_n)
    assert text is not None
    resolved = parse_variant(text).resolve(512)
    assert (resolved.frequency, resolved.distance, resolved.log_n) == (None, distance, log_n)


def test_plain_needs_no_note():
    assert variant_text(Plain(), None) is None


def test_bad_paths_and_models(make_model, tmp_path):
    model = make_model()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrites nothing"):
        export(model, tmp_path / "full")
    with pytest.raises(NotADirectoryError, match="got a file"):
        export(model, tmp_path / "full" / "precious")
    with pytest.raises(TypeError, match="transformers model"):
        export(torch.nn.Linear(2, 2), tmp_path / "new")
    with plug(model.model, distance=ReRoPE(window=4)), pytest.raises(ValueError, match="a part"):
        export(model, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "precious").read_text() == "mine"
