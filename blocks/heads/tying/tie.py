"""`tie` and `untie`: one table for the embedding and the head of a transformers model.

    embedding = tie(model)                            # as the model was, and now it stays tied
    tie(model, output="swap").reset_parameters()      # a model to be trained, starting near ln V
    tie(model, fused_loss=True)                       # training holds no logits
    head = untie(model)                               # late in training: the head's own matrix

The model keeps its parameters, its class, its state dict's keys, `generate`, `save_pretrained`,
gradient checkpointing and `resize_token_embeddings`. Tie before `fully_shard`, `torch.compile`,
adapters and `ropewalk.llm.plug`, and before the optimizer is made where `source` is given. Also
before `activation_checkpointing_enable` and `enable_input_require_grads`, which hook the embedding
that `tie` replaces; `untie` takes such hooks along.
"""

from typing import Any, Literal

import torch
from torch import nn

from ropewalk.blocks.heads.output_forms import OutputForm, check_output, permute
from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.heads.tied_embedding import TiedEmbedding
from ropewalk.blocks.heads.tying.fused_loss import fuse
from ropewalk.blocks.heads.tying.parts import Parts, check_behaviour, ends_of, find_parts
from ropewalk.blocks.heads.tying.probe import after_head
from ropewalk.blocks.heads.tying.replacement import (
    Changes,
    carry_hooks,
    make_embedding,
    own_embedding,
    put,
    refresh_tied_keys,
    set_config,
)
from ropewalk.blocks.heads.tying.tied_head import ModelEmbedding, TiedHead

_SOURCES = (None, "embedding", "head")


@torch.inference_mode(False)  # under which a new table could not be trained
def tie(
    model: nn.Module,
    *,
    output: OutputForm = "identity",
    source: Literal["embedding", "head"] | None = None,
    fused_loss: bool = False,
) -> TiedEmbedding:
    """Gives a transformers model one table for its input embedding and its output head.

    The embedding and the head are tried out first, and the model runs on six tokens, to find the
    scale and the soft cap that it applies to its logits.

    `save_pretrained` writes what the model's own class can load, with the same logits: the tied
    form for "identity", otherwise the output matrix as the head's weight with
    `tie_word_embeddings=False`. `tie` with the same `output` recognises "swap" and "shuffle" in a
    model that was loaded so. For "orthogonal", tie the loaded model with source="embedding" and
    load its state dict, which has the projection.

    Args:
        model: a decoder-only language model. What is tied already by this function stays as it is.
        output: the output form; see `ropewalk.blocks.heads.output_forms`. All but "identity" change
            what a tied model computes, so they are for models that will be trained on.
        source: of a model whose embedding and head differ, which one's values stay. The head's
            matrix is forgotten with "embedding"; with "head" the table is made of it, so that the
            head computes what it did, and the embedding's is forgotten. None refuses to forget.
        fused_loss: in training, `model(input_ids, labels=labels)` computes its loss by
            `linear_cross_entropy`, and the output's `logits` are None. Elsewhere nothing changes.

    Returns:
        The embedding, whose `logits` and `loss` are the whole head, the model's own scale and soft
        cap included. Where these cannot be found out, such as on the meta device, the model is tied
        nevertheless (not with `fused_loss`), and `logits` and `loss` raise, saying why; `tie` the
        model again once its weights are loaded.

    Raises:
        TypeError: not a model that has embeddings.
        ValueError: the model cannot be tied so; says why. Nothing has been changed then.
    """
    if source not in _SOURCES:
        raise ValueError(f"source: expected 'embedding', 'head' or None, got {source!r}")
    embedding, _ = ends_of(model)
    if isinstance(embedding, ModelEmbedding):
        return _already_tied(model, embedding, output, source, fused_loss)
    parts = find_parts(model)
    check_output(output, parts.embedding.embedding_dim)
    if output == "untied":
        raise ValueError(
            "output: expected a form that ties, got 'untied'; leave an untied model as it is, and "
            "give a tied one's head its own matrix with untie(model)"
        )
    input_scale = check_behaviour(model, parts)
    _check_source(model, parts, output, source)
    scale, softcap, refusal = 1.0, None, None
    try:
        scale, softcap = _after_head(model, parts.head)
    except ValueError as error:
        if fused_loss:
            raise
        refusal = str(error)
    changes = Changes()
    try:
        embedding = make_embedding(parts, output, source, changes)
        embedding.input_scale = input_scale
        embedding.logit_scale, embedding.softcap = scale, softcap
        embedding.refusal = refusal
        put(model, parts, embedding, changes)
        if fused_loss:
            fuse(model, embedding)
    except BaseException:
        changes.undo()
        raise
    return embedding


@torch.inference_mode(False)  # under which the new matrix could not be trained
@torch.no_grad()
def untie(model: nn.Module) -> nn.Linear:
    """Gives the head of a tied model a matrix of its own, a copy of what it computes with now.

    Untying late in training lets input and output part when the shared gradient has done its work.
    The outputs do not change at this moment. The input embedding keeps its parameter, so an
    optimizer keeps its state; the head's weight is new, and the optimizer has to be told. In one of
    its groups the head goes on with that group's learning rate and scheduler:

        optimizer.param_groups[0]["params"].append(untie(model).weight)

    Args:
        model: tied by `tie`, or by its own class.

    Returns:
        The head.

    Raises:
        TypeError: not a model that has embeddings.
        ValueError: the model is not tied, or is sharded already.
    """
    embedding, head = ends_of(model)
    if isinstance(embedding, nn.Embedding) and is_sharded(embedding.weight):
        raise ValueError(
            "untie: expected whole weights, got sharded ones; untie before fully_shard"
        )
    if isinstance(embedding, ModelEmbedding) and isinstance(head, TiedHead):
        own = head.as_linear()
        carry_hooks(head, own)
        table = own_embedding(embedding)
        if head.fused is not None:
            head.fused.remove()
        if head.loading is not None:
            head.loading.remove()
        replacing = {embedding: table, head: own}
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if child in replacing:
                    setattr(parent, name, replacing[child])
    elif isinstance(head, nn.Linear) and head.weight is embedding.weight:
        own = head
        own.weight = nn.Parameter(head.weight.clone(), requires_grad=head.weight.requires_grad)
    else:
        raise ValueError(
            f"{type(model).__name__}: expected a tied model, got one whose head has its own "
            "matrix already"
        )
    set_config(model, False, Changes())
    refresh_tied_keys(model, Changes())
    return own


def _already_tied(
    model: Any, embedding: ModelEmbedding, output: str, source: str | None, fused_loss: bool
) -> TiedEmbedding:
    if output != embedding.output or source is not None:
        raise ValueError(
            f"{type(model).__name__}: expected a model that is not tied yet, got one tied with "
            f"output {embedding.output!r}; untie(model) first, then tie it with a source"
        )
    head = model.get_output_embeddings()
    fusing = fused_loss and head.fused is None
    if fusing or embedding.refusal is not None:
        try:
            embedding.logit_scale, embedding.softcap = _after_head(model, head)
            embedding.refusal = None
        except ValueError as error:
            if fusing:
                raise
            embedding.refusal = str(error)
    if fusing:
        fuse(model, embedding)
    return embedding


def _check_source(model: nn.Module, parts: Parts, output: OutputForm, source: str | None) -> None:
    """Nothing is forgotten without being told to."""
    table, matrix = parts.embedding.weight, parts.head.weight
    if source is not None or matrix is table:
        return
    comparable = output != "orthogonal" and not table.is_meta
    if comparable and torch.equal(permute(table.detach(), output), matrix.detach()):
        return
    raise ValueError(
        f"{type(model).__name__}: expected embedding and head with the same values, got two "
        "matrices that differ; choose whose values stay: source='embedding' forgets the head's, "
        "source='head' the embedding's"
    )


def _after_head(model: nn.Module, head: Any) -> tuple[float, float | None]:
    if head.weight.is_meta:
        raise ValueError(
            f"{type(model).__name__}: expected weights in memory, to find out what it does to "
            "its logits, got the meta device; load the weights first"
        )
    return after_head(model, head)
