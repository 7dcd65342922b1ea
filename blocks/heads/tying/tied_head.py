"""What `tie` puts into a model: a `TiedEmbedding`, and a head without a table of its own.

transformers ties by letting two modules hold one tensor, which `to_empty`, `assign=True` and
sharding take apart. Here the head only looks at the embedding. To everybody else it looks as
before: it has a `weight`, and the state dict has the model's usual keys.

    model.embed_tokens.weight    the table
    lm_head.weight               the output matrix; on loading it is compared, not copied
    lm_head.bias, .projection    where there are any; the embedding looks at these
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.heads.tied_embedding import TiedEmbedding
from ropewalk.blocks.heads.tying.copying import WeakModule, copied
from ropewalk.blocks.heads.tying.fused_loss import FusedLoss
from ropewalk.blocks.heads.tying.parts import rounded
from ropewalk.blocks.heads.validation import check_ids
from ropewalk.kernels.autocast import suspended

_OF_THE_HEAD = ("bias", "projection")
_ROWS = 4096  # of a matrix that are compared at once


# Of its two parents one calls forward's argument `ids`, torch's own `input`.
class ModelEmbedding(TiedEmbedding, nn.Embedding):  # type: ignore[override]
    """A `TiedEmbedding` in the place of a model's input embedding.

    It is an `nn.Embedding` as well, because resizing and adapters ask for one. The scale and the
    soft cap are those that the model itself applies after its head, so `logits` and `loss` are the
    model's own, while the head in the model computes `raw_logits`.
    """

    # What else an nn.Embedding has; models that use these are not tied.
    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False

    # The module that was here before, without its weight: `untie` puts it back. In a tuple, so that
    # it is not a child of this one.
    replaced: tuple[nn.Embedding, ...] = ()

    # Holds the bias and the projection under the head's own names. In a tuple for the same reason.
    head: tuple["TiedHead", ...] = ()

    # Why it is not known what the model does to its logits after the head, if it is not.
    refusal: str | None = None

    # Whether the model rounds its scale to the weight's dtype, whatever that is by now.
    rounds_scale = False

    def embed(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """As `TiedEmbedding.embed`, with the scale rounded as the model does."""
        if not self.rounds_scale:
            return super().embed(ids)
        check_ids(ids)
        embedded = nn.functional.embedding(ids, self.weight, self.padding_idx)
        return embedded * rounded(self.input_scale, self.weight.dtype)

    def logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocabulary"]:
        """As `TiedEmbedding.logits`; a ValueError if the model's scale was not found out."""
        self._check_known()
        return super().logits(hidden)

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """As `TiedEmbedding.loss`; a ValueError if the model's scale was not found out."""
        self._check_known()
        return super().loss(*args, **kwargs)

    def _check_known(self) -> None:
        if self.refusal is not None:
            raise ValueError(
                "logits and loss: expected to know what the model does to its logits after the "
                f"head, but tie(model) could not find it out: {self.refusal}. Once that is "
                "mended, tie(model) again; until then there are raw_logits and the model itself"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelEmbedding":
        """With its head as a part of the model; alone a whole of its own, without the model."""
        state = dict(self.__dict__)
        if self.head and not self.head[0].goes_along(memo):
            (head,) = self.head
            state["head"] = ()
            own = {name: head._parameters[name] for name in _OF_THE_HEAD}
            state["_parameters"] = {**self._parameters, **own}
        return copied(self, state, memo)

    def __getattr__(self, name: str) -> Any:
        """What this module has not, the head may have."""
        if name in _OF_THE_HEAD and self.head:
            return getattr(self.head[0], name)
        return super().__getattr__(name)


class TiedHead(nn.Module):
    """The output head of a tied model, whose matrix is made of the embedding.

    Attributes:
        weight: the output matrix, `embedding.output_matrix()`.
        bias: added to the logits, or None.
        projection: of the "orthogonal" form, or None.
        fused: the loss without logits, if the model was tied with one.
        loading: the model's hook on its state dict (`loading`), if the head shares the table.

    Args:
        model: whose head it becomes.
        embedding: computes. Its projection, if it has one, becomes the head's.
        bias: the bias of the head that was there before.
        as_stock: whether the model's own class ties the two on loading, so that one of them need
            not be written.
        checks_weight: whether the embedding is loaded before the head.
    """

    bias: nn.Parameter | None
    projection: nn.Parameter | None
    fused: FusedLoss | None = None
    loading: RemovableHandle | None = None

    def __init__(
        self,
        model: nn.Module,
        embedding: ModelEmbedding,
        bias: nn.Parameter | None,
        *,
        as_stock: bool,
        checks_weight: bool,
    ) -> None:
        super().__init__()
        # In a tuple, so that the embedding is not a child of the head, too.
        self._embedding = (embedding,)
        self._model = WeakModule(model)
        self.as_stock = as_stock
        self.checks_weight = checks_weight
        self.register_parameter("bias", bias)
        self.register_parameter("projection", embedding.projection)
        for name in _OF_THE_HEAD:
            del embedding._parameters[name]
        embedding.head = (self,)

    @property
    def embedding(self) -> ModelEmbedding:
        return self._embedding[0]

    @property
    def weight(self) -> Tensor:
        return self.embedding.output_matrix()

    @property
    def in_features(self) -> int:
        return self.embedding.embedding_dim

    @property
    def out_features(self) -> int:
        return self.embedding.num_embeddings

    @out_features.setter
    def out_features(self, size: int) -> None:
        # How transformers tells a head that the vocabulary has been resized.
        if self.bias is not None:
            self.bias.data = nn.functional.pad(self.bias.data, (0, size - len(self.bias)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._set_weight(value)
        else:
            super().__setattr__(name, value)

    def _set_weight(self, value: Any) -> None:
        """What `tie_weights` does to a head: it gets the table, which it has."""
        embedding = self.embedding
        if value is embedding.weight:
            return
        if (
            embedding.output != "identity"
            or not isinstance(value, nn.Parameter)
            or value.shape != embedding.weight.shape
        ):
            raise ValueError(
                f"the weight of this head is made of the input embedding (output "
                f"{embedding.output!r}) and cannot be set; change embedding.weight, or give the "
                "head its own with ropewalk.blocks.heads.untie(model)"
            )
        embedding.weight = value

    def goes_along(self, memo: dict[int, Any]) -> bool:
        """Whether the model that this is the head of is being copied, with it."""
        model = self._model()
        return model is not None and id(model) in memo

    @torch.no_grad()
    def as_linear(self) -> nn.Linear:
        """A stock head that computes the same, with a copy of the matrix, and the bias itself."""
        embedding = self.embedding
        own = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        with suspended(embedding.weight):
            matrix = embedding.output_matrix().clone()
        own.weight = nn.Parameter(matrix, requires_grad=embedding.weight.requires_grad)
        own.register_parameter("bias", self.bias)
        return own.train(self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Alone, a stock head: adapters copy a head to train it, and a tied one has no weight."""
        if self.goes_along(memo):
            return copied(self, self.__dict__, memo)
        own = self.as_linear()
        own.register_parameter("bias", copy.deepcopy(self.bias, memo))
        memo[id(self)] = own
        return own

    def forward(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch columns"]:
        """The logits; the hidden states themselves where a fused loss is about to be computed."""
        if self.fused is not None and self.fused.take(hidden):
            return hidden
        return self.embedding.raw_logits(hidden)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        with torch.set_grad_enabled(keep_vars):
            matrix = self.weight
        if not keep_vars:
            matrix = matrix.detach()
        # A class that does not tie the two needs two tensors in the file.
        alias = self.embedding.output == "identity" and not self.as_stock
        destination[prefix + "weight"] = matrix.clone() if alias else matrix
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        matrix = state_dict.get(prefix + "weight")
        rest = {key: value for key, value in state_dict.items() if key != prefix + "weight"}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if matrix is not None and self.checks_weight:
            difference = self._difference(matrix)
            if difference is not None:
                error_msgs.append(f"{prefix}weight: {difference}")

    @torch.no_grad()
    def _difference(self, matrix: Tensor) -> str | None:
        """Why a loaded output matrix is not this head's; None if it is."""
        # Ranks need not load alike, so none may ask the others for what a comparison takes.
        if is_sharded(self.embedding.weight) or is_sharded(matrix):
            return None
        own = self.weight
        if matrix.shape != own.shape:
            return f"expected {tuple(own.shape)}, got {tuple(matrix.shape)}"
        if own.is_meta or matrix.is_meta:
            return None
        # Rounded to half or computed elsewhere, the same matrix differs in its last digits.
        coarsest = max(torch.finfo(x.dtype).eps for x in (own, matrix))
        greatest = off = 0.0
        for mine, theirs in zip(own.split(_ROWS), matrix.to(own.device).split(_ROWS), strict=True):
            greatest = max(greatest, float(mine.abs().max()))
            off = max(off, float((mine.double() - theirs.double()).abs().max()))
        if off <= 8 * coarsest * greatest:
            return None
        return (
            "expected the output matrix that the loaded embedding makes (output "
            f"{self.embedding.output!r}), got another one, which this head would forget; load "
            "the checkpoint into the untied model, then tie it with source='embedding' or 'head'"
        )

    def extra_repr(self) -> str:
        parts = [f"in_features={self.in_features}, out_features={self.out_features}"]
        parts.append(f"output={self.embedding.output!r}")
        if self.fused is not None:
            parts.append("fused_loss=True")
        return ", ".join(parts)
