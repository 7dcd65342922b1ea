"""Finding a model's input embedding and head, and refusing what could not be tied faithfully.

Everything here looks and asks; nothing is changed. Models are known by their methods and not by
their classes, so that nothing of transformers is imported.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.heads.sharding import is_sharded

_BY_HAND = "make a TiedEmbedding in your own model instead"


@dataclass(frozen=True)
class Parts:
    """The two modules, and everywhere they are held.

    Attributes:
        embedding: the input embedding.
        head: the output head.
        embedding_places: (parent, name) of the embedding.
        head_places: of the head.
        embedding_path: its first full name in the model.
        head_path: the head's.
        embedding_first: whether a state dict is loaded into the embedding before the head.
    """

    embedding: nn.Embedding
    head: nn.Linear
    embedding_places: list[tuple[nn.Module, str]]
    head_places: list[tuple[nn.Module, str]]
    embedding_path: str
    head_path: str
    embedding_first: bool


def ends_of(model: Any) -> tuple[nn.Module, nn.Module]:
    """The modules that a model calls its input and output embeddings.

    Raises:
        TypeError: not a model that can be asked.
        ValueError: it has an encoder, or one of the two is missing.
    """
    asked = ("get_input_embeddings", "get_output_embeddings")
    hint = ""
    if hasattr(model, "_orig_mod"):
        hint = "; tie the model before torch.compile (it is model._orig_mod)"
    elif hasattr(model, "get_base_model"):
        hint = "; pass what model.get_base_model() returns"
    # Wrappers pass such questions on, but what is put into the wrapped model they would not see.
    if hint or not isinstance(model, nn.Module) or not all(hasattr(model, x) for x in asked):
        raise TypeError(f"model: expected a transformers model, got {type(model).__name__}{hint}")
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{name}: expected a decoder-only model, got an encoder and a decoder, which share "
            f"their embeddings in ways of their own; {_BY_HAND}"
        )
    asking: Any = model
    try:
        embedding = asking.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    head = asking.get_output_embeddings()
    if not isinstance(embedding, nn.Module):
        raise ValueError(f"{name}: expected an input embedding, found none; {_BY_HAND}")
    if not isinstance(head, nn.Module):
        raise ValueError(
            f"{name}: expected an output head, found none; load it with a language model's class "
            "such as AutoModelForCausalLM"
        )
    return embedding, head


def find_parts(model: Any) -> Parts:
    """The embedding and head of a model, checked.

    Raises:
        TypeError: not a model that can be asked.
        ValueError: one of the two is missing or is more than a table or a linear map.
    """
    embedding, head = ends_of(model)
    name = type(model).__name__
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"{name}: expected an nn.Embedding as input embedding, got {type(embedding).__name__}; "
            f"{_BY_HAND}"
        )
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{name}: expected an nn.Linear as head, got {type(head).__name__}; undo what wrapped "
            f"or quantised it, or {_BY_HAND}"
        )
    for what, module in (("an input embedding", embedding), ("a head", head)):
        _check_weight(name, what, module)
    if embedding.weight.shape != head.weight.shape:
        raise ValueError(
            f"{name}: expected embedding and head of the same shape, got "
            f"{tuple(embedding.weight.shape)} and {tuple(head.weight.shape)}, which cannot share a "
            "table"
        )
    for what, a, b in (
        ("dtype", embedding.weight.dtype, head.weight.dtype),
        ("device", embedding.weight.device, head.weight.device),
    ):
        if a != b:
            raise ValueError(
                f"{name}: expected embedding and head of the same {what}, got {a} and {b}; move "
                "the model with .to() first"
            )
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(embedding, option):
            raise ValueError(
                f"{name}: expected an input embedding without {option}, got "
                f"{getattr(embedding, option)!r}; {_BY_HAND}"
            )
    _check_owners(model, embedding, head)
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    order = list(paths)[::-1]
    return Parts(
        embedding,
        head,
        _places(model, embedding),
        _places(model, head),
        paths[embedding],
        paths[head],
        order.index(embedding) < order.index(head),
    )


def _check_weight(name: str, what: str, module: nn.Embedding | nn.Linear) -> None:
    weight = module.weight
    if is_sharded(weight):
        raise ValueError(
            f"{name}: expected whole weights, got {what} that is sharded; tie the model before "
            "fully_shard"
        )
    # Quantisation libraries mark weights by a class or an integer dtype.
    plain = type(weight) is nn.Parameter and type(weight.data) is Tensor
    if not plain or not weight.is_floating_point():
        raise ValueError(
            f"{name}: expected {what} whose weight is a floating-point parameter, got "
            f"{type(weight).__name__} of {weight.dtype}; leave it out of the quantisation"
        )
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if any(hooks) or hasattr(module, "_hf_hook"):
        raise ValueError(
            f"{name}: expected {what} without hooks, which replacing it would lose; tie the model "
            "first, then add them (activation_checkpointing_enable and enable_input_require_grads "
            "add one to the embedding; disable_input_require_grads removes it)"
        )


def _check_owners(model: nn.Module, embedding: nn.Module, head: nn.Module) -> None:
    shared = {id(embedding.weight), id(head.weight)}
    for path, module in model.named_modules():
        if module is embedding or module is head:
            continue
        for key, parameter in module._parameters.items():
            if id(parameter) in shared:
                raise ValueError(
                    f"{type(model).__name__}: expected the table in the embedding and the head "
                    f"alone, found it as {path}.{key} too; {_BY_HAND}"
                )


def _places(model: nn.Module, wanted: nn.Module) -> list[tuple[nn.Module, str]]:
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is wanted
    ]


@torch.no_grad()
def check_behaviour(model: nn.Module, parts: Parts) -> float:
    """Tries the embedding and the head out: a table that may be scaled, and a linear map.

    Returns:
        The input scale.

    Raises:
        ValueError: they compute something else, or cannot be tried because they have no memory.
    """
    name, embedding, head = type(model).__name__, parts.embedding, parts.head
    scale = getattr(embedding, "embed_scale", 1.0)
    if embedding.weight.is_meta:
        if type(embedding) is nn.Embedding and type(head) is nn.Linear:
            return 1.0
        raise ValueError(
            f"{name}: expected weights in memory, to find out what {type(embedding).__name__} and "
            f"{type(head).__name__} compute, got the meta device; load the weights first"
        )
    input_scale = 1.0
    if rounds_scale(embedding):
        input_scale = rounded(float(scale), embedding.weight.dtype)
    elif isinstance(scale, int | float):
        input_scale = float(scale)
    width = embedding.embedding_dim
    ids = some_tokens(embedding)
    expected = nn.functional.embedding(ids, embedding.weight) * input_scale
    for what, weight in (("input embedding", embedding.weight), ("head", head.weight)):
        # The extremes of a table that holds a NaN are NaN, and finding them takes no memory.
        if not all(bool(extreme.isfinite()) for extreme in weight.aminmax()):
            raise ValueError(
                f"{name}: expected finite weights, got NaN or infinity in the {what}; initialise "
                "or load them first"
            )
    if not same(embedding(ids), expected):
        raise ValueError(
            f"{name}: expected an input embedding that looks up its weight, or scales it by its "
            f"embed_scale, but {type(embedding).__name__} computes something else; {_BY_HAND}"
        )
    # No random numbers, so that tying a model does not shift anybody's seed.
    waves = torch.arange(3 * width, device=head.weight.device, dtype=torch.float64).sin()
    hidden = waves.view(3, width).to(head.weight.dtype)
    if not same(head(hidden), nn.functional.linear(hidden, head.weight, head.bias)):
        raise ValueError(
            f"{name}: expected a head that multiplies with its weight, but "
            f"{type(head).__name__} computes something else; {_BY_HAND}"
        )
    return input_scale


def rounds_scale(embedding: nn.Embedding) -> bool:
    """Whether its scale is a tensor, which it multiplies by in its weight's dtype (Gemma)."""
    scale = getattr(embedding, "embed_scale", None)
    return isinstance(scale, Tensor) and scale.numel() == 1


def rounded(x: float, dtype: torch.dtype) -> float:
    """The nearest number of this dtype, in arithmetic that compilers trace.

    Source: Veltkamp's splitting, Dekker 1971 (doi 10.1007/BF01397083) §5.
    """
    # 2^s + 1, where s bits of a double's 53 are to go.
    multiple = x * (torch.finfo(dtype).eps * 2**52 + 1)
    return multiple - (multiple - x)


def some_tokens(embedding: nn.Embedding) -> Tensor:
    """A few rows from all over the table."""
    rows = len(embedding.weight)
    some = min(rows, 7)
    return torch.arange(some, device=embedding.weight.device) * (rows // some)


def same(x: Tensor, y: Tensor, *, like: Tensor | None = None) -> bool:
    """Whether two results are equal to the rounding of `like`, by default their own; NaN is not."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    dtype = x.dtype if like is None else like.dtype
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
    x, y = x.double(), y.double()
    return bool((x - y).norm() <= tolerance * y.norm())
