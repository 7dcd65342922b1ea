"""A training is exact: continued to the bit, the same batches for the same seed, and it learns."""

import signal
from dataclasses import replace

import pytest
import torch

from ropewalk.evals import run_folder
from ropewalk.evals.denoising import checkpoint
from ropewalk.evals.denoising.build import new_model, process_for
from ropewalk.evals.denoising.recipe import DISCRETE, PROCESSES
from ropewalk.evals.denoising.train import Batches, losses_of, train
from ropewalk.evals.errors import InputError


def tensors_in(folder):
    return checkpoint.read_tensors(folder / checkpoint.NAME)[0]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_run_that_is_stopped_and_continued_equals_an_unbroken_one(
    process, tiny, few_digits, alone, tmp_path
):
    recipe = replace(tiny, process=process, patch_size=1 if process in DISCRETE else 2)
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    whole = train(recipe, few_digits, folders[0], {}, ranks=alone)
    for stop_at in (1, 4, None):
        torch.manual_seed(stop_at or 0)  # nothing hangs on the global generator
        parts = train(recipe, few_digits, folders[1], {}, ranks=alone, stop_at=stop_at)
    assert parts.state.losses == whole.state.losses
    assert len(whole.state.losses) == recipe.steps
    expected = tensors_in(folders[0])
    found = tensors_in(folders[1])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    assert [session["until"] for session in parts.state.sessions] == [1, 4, 6]
    assert [session["from"] for session in parts.state.sessions] == [0, 1, 4]


def withheld_in(drawn):
    assert drawn.condition is not None
    return drawn.condition


def test_a_finished_training_is_not_touched(tiny, few_digits, alone, tmp_path):
    train(tiny, few_digits, tmp_path, {}, ranks=alone)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    again = train(tiny, few_digits, tmp_path, {}, ranks=alone, on_step=pytest.fail)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert again.state.step == tiny.steps


def test_the_model_that_comes_back_has_the_averaged_weights(tiny, few_digits, alone, tmp_path):
    trained = train(tiny, few_digits, tmp_path, {}, ranks=alone)
    kept = tensors_in(tmp_path)
    moved = 0.0
    for name, value in trained.model.named_parameters():
        assert torch.equal(value, kept[f"ema.{name}"])
        moved += (value - kept[f"model.{name}"]).abs().sum().item()
    assert moved > 0.0
    assert not trained.model.training


def interrupt(at, times):
    """Ctrl-C, some times, after a step."""

    def on_step(step, _):
        if step == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return on_step


@pytest.fixture
def _interrupts():
    """Ctrl-C as in a terminal: a job in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
def test_an_interrupt_is_put_off_until_its_step_is_kept(tiny, few_digits, alone, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = train(tiny, few_digits, tmp_path / "whole", {}, ranks=alone)
    usual = signal.getsignal(signal.SIGINT)
    for at, times, kept in ((2, 1, 2), (4, 2, 2)):  # the second Ctrl-C ends it at once
        with pytest.raises(KeyboardInterrupt):
            train(
                tiny,
                few_digits,
                tmp_path / "stopped",
                {},
                ranks=alone,
                on_step=interrupt(at, times),
            )
        state = checkpoint.read_state(tmp_path / "stopped")
        assert state is not None
        assert state.step == kept
        assert signal.getsignal(signal.SIGINT) is usual
    again = train(tiny, few_digits, tmp_path / "stopped", {}, ranks=alone)
    assert again.state.losses == whole.state.losses
    assert tensors_in(tmp_path / "stopped").keys() == tensors_in(tmp_path / "whole").keys()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_training_lowers_the_loss(tiny, few_digits, alone, tmp_path):
    recipe = replace(tiny, dim=32, steps=80, warmup=10, rate=1e-2, batch_size=32)
    losses = []
    train(
        recipe, few_digits, tmp_path, {}, ranks=alone, on_step=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 80
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_the_seed_decides_weights_and_batches(tiny, few_digits):
    process = process_for(tiny, few_digits)
    first, same = (Batches(tiny, few_digits, process)(3) for _ in range(2))
    other = Batches(replace(tiny, seed=1), few_digits, process)(3)
    for mine, equal, unlike in zip(first, same, other, strict=True):
        assert torch.equal(mine, equal)
        assert not torch.equal(mine, unlike)
    weights = [
        torch.cat([p.flatten() for p in new_model(recipe, few_digits.form).parameters()])
        for recipe in (tiny, tiny, replace(tiny, seed=1))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_picture_comes_once_before_any_comes_again(tiny, few_digits):
    images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1).expand(100, 1, 8, 8)
    data = replace(few_digits, images=images.contiguous(), levels=256)
    batches = Batches(replace(tiny, batch_size=20), data, process_for(tiny, data))
    seen = torch.cat([batches(step).x0[:, 0, 0, 0] for step in range(10)])
    expected = data.continuous(data.split[0])[:, 0, 0, 0].sort().values
    for epoch in seen.split(50):
        assert torch.equal(epoch.sort().values, expected)
    assert not torch.equal(*seen[:100].split(50))
    # Steps may be asked for in any order, as a continued run does.
    assert torch.equal(batches(3).x0[:, 0, 0, 0], seen[60:80])


def test_classes_are_withheld_as_often_as_asked(tiny, few_digits):
    recipe = replace(tiny, label_drop=0.25, batch_size=50)
    batches = Batches(recipe, few_digits, process_for(recipe, few_digits))
    conditions = torch.cat([withheld_in(batches(step)) for step in range(80)])
    withheld = (conditions == 10).double().mean().item()
    assert withheld == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    never = Batches(replace(recipe, label_drop=0.0), few_digits, process_for(recipe, few_digits))
    assert withheld_in(never(0)).max() < 10


def test_the_loss_of_a_perfect_denoiser_is_zero(tiny, few_digits):
    process = process_for(tiny, few_digits)
    drawn = Batches(tiny, few_digits, process)(0)
    losses = losses_of(lambda x, t, y: drawn.noise - drawn.x0, process, drawn)
    assert losses.shape == (16,)
    assert losses.max() < 1e-12


def test_half_precision_trains_nearly_the_same(tiny, few_digits, alone, tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        (tmp_path / precision).mkdir()
        recipe = replace(tiny, precision=precision)
        trained = train(recipe, few_digits, tmp_path / precision, {}, ranks=alone)
        losses[precision] = trained.state.losses
        assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(tiny):
    recipe = replace(tiny, steps=100, warmup=10, rate=1.0)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.0 < rates[-1] < 1e-3


@pytest.mark.parametrize("changes", [{"dim": 32}, {"depth": 2}, {"mixer": "recurrent"}], ids=str)
def test_a_checkpoint_of_another_shape_is_refused_and_kept(
    changes, tiny, few_digits, alone, tmp_path
):
    train(tiny, few_digits, tmp_path, {}, ranks=alone, stop_at=1)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(InputError, match=r"another shape: .*(expected to be|not part of this one)"):
        train(replace(tiny, **changes), few_digits, tmp_path, {}, ranks=alone)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_a_checkpoint_with_more_blocks_is_refused(tiny, few_digits, alone, tmp_path):
    train(replace(tiny, depth=2), few_digits, tmp_path, {}, ranks=alone, stop_at=1)
    with pytest.raises(InputError, match=r"another shape: .* is not part of this one"):
        train(tiny, few_digits, tmp_path, {}, ranks=alone)


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused(damage, tiny, few_digits, alone, tmp_path):
    train(tiny, few_digits, tmp_path, {}, ranks=alone, stop_at=1)
    path = tmp_path / checkpoint.NAME
    content = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(InputError, match=r"cannot be read|not written by this version"):
        train(tiny, few_digits, tmp_path, {}, ranks=alone)


def test_a_write_that_fails_leaves_the_old_checkpoint(
    tiny, few_digits, alone, tmp_path, monkeypatch
):
    train(tiny, few_digits, tmp_path, {}, ranks=alone, stop_at=2)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run_folder.os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        train(tiny, few_digits, tmp_path, {}, ranks=alone, stop_at=3)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
