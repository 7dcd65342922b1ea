import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.evals.default_model import architecture, bundled_models, mixture, train
from ropewalk.evals.default_model.publish import load_weights, publish
from ropewalk.evals.default_model.recipe import PLAIN, Phase

TINY = dataclasses.replace(
    PLAIN,
    steps=4,
    warmup=1,
    tokens_per_step=512,
    phases=(Phase(0.5, 128, {"text": 0.5, "copy": 0.5}), Phase(1.0, 256, {"text": 1.0})),
)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A narrow model and a small library, so that a step takes milliseconds."""
    from transformers import LlamaConfig

    full = architecture.configuration()

    def configuration() -> LlamaConfig:
        return LlamaConfig(
            **{
                **full.to_dict(),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
            }
        )

    library = tmp_path / "library"
    library.mkdir()
    for number in range(30):
        (library / f"module{number}.py").write_text(f"value{number} = {number}\n" * 99)
    monkeypatch.setattr(architecture, "configuration", configuration)
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(library))


def run(folder: Path, **options) -> torch.nn.Module:
    return train.train(TINY, folder, log=lambda _line: None, **options)


def test_a_run_that_is_stopped_and_continued_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_at=1)
    run(tmp_path / "parts", stop_at=3)
    continued = run(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], value, rtol=0, atol=0)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    longer = dataclasses.replace(TINY, steps=30, phases=(Phase(1.0, 128, {"text": 1.0}),))
    train.train(
        longer, tmp_path, on_step=lambda _step, loss: losses.append(loss), log=lambda _line: None
    )
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 1.0


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, stop_at=1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match="another recipe"):
        train.train(dataclasses.replace(TINY, seed=1), tmp_path, log=lambda _line: None)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_variant_needs_somebody_who_plugs_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass plug_variant"):
        train.train(dataclasses.replace(TINY, variant="log-n"), tmp_path)


def test_each_kind_of_row_counts_by_its_mean(tmp_path: Path) -> None:
    import numpy as np

    tokens = np.full(4, 5)
    few = np.array([-100, -100, -100, 5])
    rows = [mixture.Row("text", tokens, tokens), mixture.Row("copy", tokens, few)]
    logits = torch.zeros(2, 4, 264)
    loss = train.mixed_loss(logits, rows, 0.5)
    torch.testing.assert_close(loss, torch.tensor(264.0).log() * 1.5)


def test_a_published_model_loads_through_transformers(tmp_path: Path) -> None:
    model = run(tmp_path / "run")
    folder = publish(model, tmp_path / "model", card="# card", native_variant="log-n:length=512")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer("def f():", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model.eval()(tokens).logits, rtol=0.05, atol=0.02
        )
    assert loaded.config.ropewalk == {"variant": "log-n:length=512"}
    restored = load_weights(architecture.untrained(5), tmp_path / "run" / "checkpoint.safetensors")
    torch.testing.assert_close(restored.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_bundled_models_are_small_and_described() -> None:
    models = bundled_models()
    assert "default" in models
    for folder in models.values():
        assert (folder / "model.safetensors").stat().st_size <= 12_000_000
        assert "bits per byte" in (folder / "README.md").read_text()


def test_the_command_trains_and_writes_a_model_that_names_its_native_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ropewalk.evals import cli
    from ropewalk.evals.default_model import recipe

    small = dataclasses.replace(
        recipe.INVERSE_LEAKY, steps=2, warmup=1, tokens_per_step=512, phases=(TINY.phases[-1],)
    )
    monkeypatch.setitem(recipe.RECIPES, "inverse_leaky", small)
    command = ["train-default", "--recipe", "inverse_leaky", "--out", str(tmp_path / "run")]
    for _ in range(2):  # the second call finds everything done
        assert cli.run(command) == 0
    folder = tmp_path / "run" / "model"
    assert str(folder.name) in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.ropewalk == {"variant": small.native_variant}
    card = (folder / "README.md").read_text()
    assert small.variant in card
    assert "bits per byte" in card


def test_the_command_refuses_an_unknown_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ropewalk.evals import cli

    assert cli.run(["train-default", "--recipe", "plane", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'plain'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
