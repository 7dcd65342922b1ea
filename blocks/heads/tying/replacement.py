"""What `tie` and `untie` change in a model: two modules, and what its configuration says of ties.

Changes are noted, so that a model which turns out not to bear them is as it was.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ropewalk.blocks.heads.output_forms import OutputForm, unpermute
from ropewalk.blocks.heads.tying.loading import SharedTable
from ropewalk.blocks.heads.tying.parts import Parts, rounds_scale, same, some_tokens
from ropewalk.blocks.heads.tying.tied_head import ModelEmbedding, TiedHead
from ropewalk.kernels.autocast import suspended

# Of torch.nn.Module.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


class Changes:
    """What was done, and how it is undone."""

    def __init__(self) -> None:
        self._undoing: list[Callable[[], object]] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        self.note(functools.partial(setattr, target, name, getattr(target, name)))
        setattr(target, name, value)

    def note(self, undoing: Callable[[], object]) -> None:
        self._undoing.append(undoing)

    def undo(self) -> None:
        while self._undoing:
            self._undoing.pop()()


@torch.no_grad()
def make_embedding(
    parts: Parts, output: OutputForm, source: str | None, changes: Changes
) -> ModelEmbedding:
    """Holds the model's parameters; only what is made of others is new."""
    table, matrix = parts.embedding.weight, parts.head.weight
    rows, width = table.shape
    embedding = ModelEmbedding(
        rows,
        width,
        output=output,
        padding_idx=parts.embedding.padding_idx,
        device="meta",
        dtype=table.dtype,
    )
    if embedding.projection is not None:
        _note_random_state(table.device, changes)
        embedding.projection = nn.Parameter(
            torch.empty(width, width, device=table.device).to(table)
        )
        embedding._reset_projection()
    if source == "head" and output != "identity":
        # The table whose output matrix is the head's; P⁻¹ is Pᵀ.
        with suspended(matrix):
            values = (
                matrix @ embedding.projection
                if embedding.projection is not None
                else unpermute(matrix, output)
            )
        table = nn.Parameter(values.contiguous(), requires_grad=matrix.requires_grad)
    elif source == "head":
        table = matrix
    embedding.weight = table
    embedding.rounds_scale = rounds_scale(parts.embedding)
    embedding.train(parts.embedding.training)
    spare = copy.copy(parts.embedding)
    spare.__dict__["_parameters"] = {**parts.embedding._parameters, "weight": None}
    embedding.replaced = (spare,)
    return embedding


def _note_random_state(device: torch.device, changes: Changes) -> None:
    """What is drawn for a model that is then refused shifts nobody's seed."""
    if device.type == "cpu":
        changes.note(functools.partial(torch.set_rng_state, torch.get_rng_state()))
    elif device.type != "meta":
        module: Any = torch.get_device_module(device)
        changes.note(functools.partial(module.set_rng_state, module.get_rng_state(device), device))


def put(model: nn.Module, parts: Parts, embedding: ModelEmbedding, changes: Changes) -> None:
    as_stock = embedding.output == "identity" and _class_ties(model, parts)
    head = TiedHead(
        model,
        embedding,
        parts.head.bias,
        as_stock=as_stock,
        checks_weight=parts.embedding_first,
    )
    head.train(parts.head.training)
    for parent, name in parts.embedding_places:
        changes.set(parent, name, embedding)
    for parent, name in parts.head_places:
        changes.set(parent, name, head)
    if embedding.output == "identity":
        shared = SharedTable(f"{parts.embedding_path}.weight", f"{parts.head_path}.weight")
        head.loading = model.register_load_state_dict_pre_hook(shared)
        changes.note(head.loading.remove)
    set_config(model, as_stock, changes)
    try:
        refresh_tied_keys(model, changes)
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__}: expected a decoder-only model that names what it ties, got "
            f"one that ties other weights too, described by patterns (as encoders do): {error}"
        ) from error


def _class_ties(model: Any, parts: Parts) -> bool:
    """Whether the model's own class ties these two if its configuration says so."""
    if not hasattr(model, "get_expanded_tied_weights_keys"):
        return False
    changes = Changes()
    try:
        set_config(model, True, changes)
        keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    finally:
        changes.undo()
    both = {f"{parts.embedding_path}.weight", f"{parts.head_path}.weight"}
    return any({target, origin} == both for target, origin in keys.items())


def set_config(model: Any, tied: bool, changes: Changes) -> None:
    config = getattr(model, "config", None)
    if config is None or getattr(config, "tie_word_embeddings", None) == tied:
        return
    # Two models may have been built from one configuration object.
    changed = copy.copy(config)
    changed.tie_word_embeddings = tied
    for module in model.modules():
        if vars(module).get("config") is config:
            changes.set(module, "config", changed)


def refresh_tied_keys(model: Any, changes: Changes) -> None:
    """What transformers remembers of ties, from when the model was made."""
    if hasattr(model, "all_tied_weights_keys"):
        keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        changes.set(model, "all_tied_weights_keys", keys)


def own_embedding(embedding: ModelEmbedding) -> nn.Embedding:
    """What was there before `tie`, with the table.

    Raises:
        ValueError: it does not compute what the embedding does by now.
    """
    (own,) = embedding.replaced
    own = copy.copy(own).to(embedding.weight.device)
    own.__dict__["_parameters"] = {"weight": embedding.weight}
    own.num_embeddings, own.padding_idx = embedding.num_embeddings, embedding.padding_idx
    ids = some_tokens(own)
    if not embedding.weight.is_meta and not same(own(ids), embedding.embed(ids)):
        raise ValueError(
            f"untie: expected the input embedding that was there before, {type(own).__name__}, to "
            f"compute what the tied one does, but its input_scale {embedding.input_scale} has been "
            "changed since; set it back, or change the model's own scale"
        )
    carry_hooks(embedding, own)
    return own.train(embedding.training)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """What was hooked onto one module since it was put there, such as by checkpointing.

    The dictionaries themselves go over, because by them the hooks' handles remove hooks.
    """
    for name in _HOOKS:
        vars(new)[name] = vars(old)[name]
