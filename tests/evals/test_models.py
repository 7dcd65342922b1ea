"""Opening models: bundled ones, folders, and what is refused before any weights are loaded."""

import json
import shutil

import pytest
import torch

from ropewalk.evals.errors import InputError
from ropewalk.evals.models import choose_device, choose_dtype, open_model
from ropewalk.llm.variants import parse_variant


def test_a_folder_is_opened_and_loaded(tiny_model):
    source = open_model(str(tiny_model))
    assert source.trained_length == 160
    assert source.native == parse_variant("rope")
    assert source.tokenizer("ab", add_special_tokens=False)["input_ids"] == [100, 101]
    model = source.load(dtype=torch.bfloat16, device=torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_the_native_variant_is_read_from_the_config(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "native")
    config = json.loads((folder / "config.json").read_text())
    config["ropewalk"] = {"variant": "log-n:length=160,clamp=false"}
    (folder / "config.json").write_text(json.dumps(config))
    source = open_model(str(folder))
    assert source.native == parse_variant("log-n:length=160,clamp=false")
    assert source.fingerprint != open_model(str(tiny_model)).fingerprint


def test_the_trained_length_is_the_one_before_scaling(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 640
    config["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 160,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(str(folder)).trained_length == 160


def test_other_weight_formats_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no \.safetensors file"):
        open_model(str(folder))


def test_remote_code_does_not_run_unless_asked_for(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(InputError, match="cannot open model") as caught:
        open_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_model_without_rope_is_refused_by_its_config(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=264, n_embd=8, n_layer=1, n_head=1, n_positions=64)
    )
    model.save_pretrained(tmp_path)
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"\(gpt2\) has no rotary position embedding"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./nowhere", "is no folder"),
        ("/nowhere/at/all", "is no folder"),
        ("defualt", "did you mean 'default'"),
    ],
)
def test_names_that_cannot_be_meant_are_refused_at_once(name, expected):
    with pytest.raises(InputError, match=expected):
        open_model(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_model(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "mute")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer$"):
        open_model(str(folder))


def test_weights_that_cannot_be_read_are_one_line(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    source = open_model(str(folder))
    with pytest.raises(InputError, match="cannot load model") as caught:
        source.load(dtype=torch.float32, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_devices_and_dtypes_by_name():
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("float16", cpu) == torch.float16
    with pytest.raises(InputError, match="did you mean 'float32'"):
        choose_dtype("flaot32", cpu)
    with pytest.raises(InputError, match="cannot be used"):
        choose_device("warp")
