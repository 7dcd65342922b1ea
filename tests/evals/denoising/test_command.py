"""`ropewalk denoise`, from the command line to the report."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ropewalk.evals import cli
from ropewalk.evals.denoising import checkpoint, load_denoiser, results
from ropewalk.evals.denoising.job import denoise
from ropewalk.evals.denoising.recipe import DISCRETE, PROCESSES, Recipe
from ropewalk.evals.denoising.report import conclusion
from ropewalk.evals.denoising.request import DenoiseRequest
from ropewalk.evals.denoising.sampling import Sampling
from ropewalk.evals.run_folder import LOCK

SMALL = ["--dim", "16", "--depth", "1", "--heads", "2", "--batch-size", "16", "--steps", "3"]
QUICK = ["--samples", "20", "--sampling-steps", "2", "--threads", "1"]


def run(out: Path, *more: str) -> int:
    """The command on a model so small that it takes a second."""
    return cli.run(["denoise", "--out", str(out), *SMALL, *QUICK, *more])


def quick(out: Path, **changes: Any) -> DenoiseRequest:
    """The same request from Python, which draws no report."""
    given = {"dim": 16, "depth": 1, "heads": 2, "batch_size": 16, "steps": 3, **changes}
    return DenoiseRequest(out, recipe=Recipe(**given), sampling=Sampling(samples=20, steps=2))


def refusal(capsys, out: Path, *more: str) -> str:
    """What is said about bad input; nothing may be left behind."""
    assert run(out, *more) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("ropewalk: error: ")
    assert error.count("\n") == 1
    return error


def test_a_run_leaves_figures_weights_samples_and_a_report(tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out) == 0
    printed = capsys.readouterr()
    assert "SVC accuracy on samples" in printed.out
    assert "The gate" not in printed.out  # which is for the default samples
    assert "training 3/3" in printed.err
    content = results.read(out)
    assert content["complete"]
    assert content["gate"] is None
    assert not {"degradation", "dimension"} & content["configuration"]["recipe"].keys()
    assert content["measured"]["samples"] == 20
    assert content["measured"]["real"]["frechet"] == pytest.approx(0.2932, abs=1e-3)
    assert len(content["losses"]["values"]) == 3
    assert content["configuration"]["recipe"]["seed"] == 0
    assert content["sampling"]["guidance"] == 1.0
    (session,) = content["sessions"]
    assert session["versions"]["scikit-learn"]
    assert session["hardware"]["threads"] == 1
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "Fréchet distance" in page
    names = {path.name for path in out.iterdir()} - {LOCK}
    modes = {path.name: path.stat().st_mode for path in out.iterdir()}
    assert len(set(modes.values())) == 1, modes
    assert names == {
        "checkpoint.safetensors",
        "denoising.json",
        "loss.png",
        "model.safetensors",
        "nearest.png",
        "report.html",
        "samples.png",
        "samples.safetensors",
    }


def test_a_finished_run_is_drawn_again_and_other_samples_need_no_training(tmp_path, capsys):
    out = tmp_path / "run"
    denoise(quick(out))
    trained = (out / checkpoint.NAME).read_bytes()
    figures = results.read(out)
    assert cli.run(["report", str(out)]) == 0
    assert (out / "samples.png").exists()
    assert (out / "report.html").exists()
    capsys.readouterr()
    assert run(out) == 0
    assert "training" not in capsys.readouterr().err
    assert results.read(out) == figures
    guidance = Sampling(samples=20, steps=2, guidance=3.0, solver="euler")
    guided = denoise(replace(quick(out), sampling=guidance))
    assert guided["sampling"]["guidance"] == 3.0
    assert guided["measured"] != figures["measured"]
    assert guided["losses"] == figures["losses"]
    assert (out / checkpoint.NAME).read_bytes() == trained


def test_the_denoiser_of_a_run_can_be_loaded(tmp_path):
    denoise(quick(tmp_path / "run", registers=2, mixer="hybrid", adaln="shared"))
    model, process = load_denoiser(str(tmp_path / "run"))
    kept = checkpoint.read_tensors(tmp_path / "run" / checkpoint.NAME)[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, kept[f"ema.{name}"])
    assert process.kind == "gaussian"
    x = torch.randn(2, 1, 8, 8)
    assert model(x, torch.rand(2), torch.tensor([0, 9])).shape == x.shape


def test_the_gate_of_the_digits_is_told_where_it_is_meant(tmp_path):
    content = denoise(replace(quick(tmp_path / "run"), sampling=Sampling(steps=1, solver="euler")))
    assert content["gate"] is False
    wanted = "The gate of the digits (SVC accuracy on samples ≥ 0.95, Fréchet distance"
    assert wanted in conclusion(content)
    assert conclusion(content).endswith(" is not passed.")
    assert "mean little" not in conclusion(content)
    assert "guidance s = 1 (w = 0 of ClassifierFree)" in conclusion(content)


@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_runs_to_its_report(process, tmp_path):
    patch_size = 1 if process in DISCRETE else 2
    content = denoise(quick(tmp_path / "run", process=process, patch_size=patch_size, steps=2))
    assert content == results.read(tmp_path / "run")
    assert content["configuration"]["recipe"]["process"] == process
    pictures = results.read_samples(tmp_path / "run")["samples"]
    assert pictures.shape == (20, 1, 8, 8)
    assert len(pictures.unique()) > 2


@pytest.mark.parametrize("classes", [2, 0])
def test_a_folder_of_images(classes, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        place = tmp_path / "images" / (f"class{number % classes}" if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
    command = ["--data", str(tmp_path / "images"), "--image-size", "16", "--unseen", "0.3"]
    assert run(tmp_path / "run", *command) == 0
    content = results.read(tmp_path / "run")
    assert content["gate"] is None
    assert "With 12 unseen pictures these figures mean little." in conclusion(content)
    assert content["configuration"]["data"]["shape"] == [3, 16, 16]
    assert ("accuracy" in content["measured"]) == bool(classes)
    assert "Fréchet" in capsys.readouterr().out
    if not classes:
        assert "--guidance 2 needs classes" in refusal(
            capsys, tmp_path / "other", *command, "--guidance", "2"
        )


@pytest.mark.slow
def test_a_run_that_is_killed_continues_to_the_bit(tmp_path, capsys):
    out = tmp_path / "killed"
    long = ["--steps", "60", "--checkpoint-every", "5"]
    command = [sys.executable, "-m", "ropewalk.evals.cli", "denoise", "--out", str(out)]
    process = subprocess.Popen(
        [*command, *SMALL, *QUICK, *long], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (out / checkpoint.NAME).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    state = checkpoint.read_state(out)
    assert state is not None
    assert 5 <= state.step < 60
    assert not results.read(out)["complete"]
    assert run(out, *long) == 0
    assert f"continuing: {state.step} of 60 steps are done" in capsys.readouterr().err
    denoise(quick(tmp_path / "whole", steps=60))
    killed, whole = (results.read(tmp_path / name) for name in ("killed", "whole"))
    assert killed["losses"] == whole["losses"]
    assert killed["measured"] == whole["measured"]
    assert killed["configuration"] == whole["configuration"]
    assert [session["from"] for session in killed["sessions"]] == [0, state.step]


def test_other_options_are_refused_by_name_and_nothing_is_touched(tmp_path, capsys):
    out = tmp_path / "run"
    denoise(quick(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert run(out, "--dim", "32", "--rate", "0.1") == 2
    error = capsys.readouterr().err
    assert "dim 16 there and 32 here" in error
    assert "rate 0.004 there and 0.1 here" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_damaged_file_of_a_run_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    denoise(quick(out))
    content = json.loads((out / results.NAME).read_text())
    del content["measured"]["frechet"]
    (out / results.NAME).write_text(json.dumps(content))
    assert cli.run(["report", str(out)]) == 2
    assert "damaged" in capsys.readouterr().err
    (out / results.NAME).write_text("{}")
    assert run(out) == 2
    assert "was not written by this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--patch-size 3", "--patch-size 3 does not divide the images' 8 × 8"),
        ("--sampling-steps 0", "--sampling-steps must be at least 1, got 0"),
        ("--steps 0", "--steps must be at least 1"),
        ("--guidance 2 --label-drop 0", "its null condition: take a --label-drop above 0"),
        ("--guidance -1", "--guidance must not be negative"),
        ("--process mask --solver heun", "mask"),
        ("--process mask --patch-size 2", "expected --patch-size 1, got 2"),
        ("--process mask --parametrisation v", "--parametrisation is only read by"),
        ("--degradation blur", "--degradation is only read by --process cold"),
        ("--dimension 4", "--dimension is only read by --process poisson-flow"),
        ("--solver nonesuch", "nonesuch"),
        ("--process warm", "--process expects gaussian, poisson-flow, cold, mask or edit"),
        ("--heads 3", "--dim 16 is no multiple of --heads 3; try --dim 15"),
        ("--batch-size 2000", "more than the 898 images"),
        ("--label-drop 1", "--label-drop must be in [0, 1)"),
        ("--rate 0", "--rate must be positive"),
        ("--seed -1", "--seed must not be negative"),
        ("--samples 1", "--samples must be at least 2"),
        ("--stochasticity 2", "--stochasticity must be in [0, 1]"),
        ("--checkpoint-every 0", "--checkpoint-every must be at least 1"),
        ("--image-size 16", "--image-size is only read with a folder"),
        ("--data nowhere", "--data expects digits or a folder of images, got 'nowhere'"),
        ("--sharding zero", "--sharding expects ddp or fsdp"),
        ("--sharding ddp", "torchrun --nproc-per-node"),
        ("--device nowhere", "nowhere"),
    ],
)
def test_bad_input_ends_with_a_line_before_any_work(options, expected, tmp_path, capsys):
    assert expected in refusal(capsys, tmp_path / "run", *options.split())


def test_a_missing_package_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ropewalk.evals.denoising.request.find_spec", lambda _: None)
    assert "pip install 'ropewalk[diffusion]'" in refusal(capsys, tmp_path / "run")


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("all of it")
    assert run(tmp_path) == 2
    assert "no run and not empty ('thesis.tex' is in it)" in capsys.readouterr().err


def test_the_report_of_a_run_that_has_not_ended_says_so(tmp_path, capsys):
    results.opened(tmp_path, {"data": {}, "recipe": {}})
    assert cli.run(["report", str(tmp_path)]) == 2
    assert "not trained and measured yet" in capsys.readouterr().err


def test_the_command_line_starts_without_heavy_packages():
    code = (
        "import sys, ropewalk.evals.cli as cli; cli.run(['denoise', '--help']);"
        "heavy = {'torch', 'sklearn', 'PIL', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
