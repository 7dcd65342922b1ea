"""What `ropewalk train-default` does: trains with a progress bar, then writes the model folder."""

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from ropewalk.evals.default_model import architecture
from ropewalk.evals.default_model.card import model_card
from ropewalk.evals.default_model.publish import load_weights, publish
from ropewalk.evals.default_model.recipe import Recipe
from ropewalk.evals.default_model.train import (
    CHECKPOINT,
    held_out_windows,
    read_state,
    train,
    validate,
)
from ropewalk.llm.variants import parse_variant

MODEL_FOLDER = "model"
MEASURED_PROMPTS = 100


def _plug(model: nn.Module, variant: str) -> None:
    parse_variant(variant).plug(model)


def train_and_publish(
    recipe: Recipe, folder: Path, console: Console, *, compiled: bool = False
) -> Path:
    """Trains `recipe`, or continues, and writes `folder`/model for transformers to load.

    Args:
        recipe: what to train.
        folder: where checkpoint and model go.
        console: for the progress bar and one line per validation.
        compiled: see `train`.

    Returns:
        The model folder, which `ropewalk eval --model` takes.

    Raises:
        ValueError: the checkpoint in `folder` belongs to another recipe.
    """
    begun = read_state(folder)["step"] if (folder / CHECKPOINT).exists() else 0
    progress = Progress(
        TextColumn("training {task.fields[name]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        task = progress.add_task(
            "train", total=recipe.steps, completed=begun, name=recipe.name, loss=float("nan")
        )
        train(
            recipe,
            folder,
            plug_variant=_plug,
            compiled=compiled,
            on_step=lambda step, loss: progress.update(task, completed=step, loss=loss),
            log=progress.console.print,
        )
    return publish_checkpoint(recipe, folder, folder / MODEL_FOLDER)


def publish_checkpoint(recipe: Recipe, checkpoint_folder: Path, folder: Path) -> Path:
    """Measures the trained model as it is meant to be run, and writes the model folder.

    Args:
        recipe: what was trained.
        checkpoint_folder: holds the finished checkpoint.
        folder: written to.
    """
    model = load_weights(architecture.untrained(recipe.seed), checkpoint_folder / CHECKPOINT)
    with parse_variant(recipe.native_variant).plug(model):
        measured = validate(model, held_out_windows(), prompts=MEASURED_PROMPTS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(recipe, read_state(checkpoint_folder), measured, parameters=parameters)
    native = recipe.native_variant if recipe.variant else None
    return publish(model, folder, card=card, native_variant=native)
