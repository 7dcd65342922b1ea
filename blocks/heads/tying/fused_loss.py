"""The loss of a transformers model in training, without its logits.

    model(input_ids, labels=labels)
      ├─ labels, and in training? then the head is told
      ├─ the head returns its hidden states instead of logits
      ├─ the model gives them to its loss function as if they were logits: linear cross-entropy
      └─ the output's logits, which nobody computed, are None

In evaluation, without labels, or where somebody calls the model's parts by themselves, nothing of
this happens and the model is as it was.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ropewalk.blocks.heads.tied_embedding import TiedEmbedding
from ropewalk.blocks.heads.tying.parts import same
from ropewalk.blocks.heads.tying.probe import evaluated, probe_tokens, run


class FusedLoss:
    """The `forward` of one model and its loss function.

    It takes the place of `model.forward` and is no hook, which a compiler would trace apart from
    the model that it belongs to. A deep copy of the model has one of its own. Model and loss refer
    to each other, so it is the garbage collector that frees them.

    What the head and the loss function tell each other is kept here, so of one model there may be
    one forward in training at a time: threads that train together need copies of the model.

    Args:
        model: whose forward it becomes.
        embedding: computes the loss.

    Attributes:
        forced: also outside of training, to try it out.
    """

    def __init__(self, model: Any, embedding: TiedEmbedding) -> None:
        self.model = model
        self.embedding = embedding
        self.forced = False
        self._previous: Callable[..., Any] | None = vars(model).get("forward")
        self._stock: Callable[..., Tensor] = model.loss_function
        self._labels_position = _arguments(model).index("labels")
        self._wanted = self._taken = self._computed = False
        self._hidden: Tensor | None = None

    def install(self) -> None:
        """Puts itself into the model."""
        self.model.forward = self
        self.model.loss_function = self.loss  # a property of transformers' models, with a setter

    def remove(self) -> None:
        """Takes itself out again."""
        if self._previous is None:
            del self.model.forward
        else:
            self.model.forward = self._previous
        self.model.loss_function = self._stock

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The model's own forward; transformers reads from its signature what a model takes."""
        if self._previous is not None:
            return self._previous
        return type(self.model).forward.__get__(self.model)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._previous is not None:
            return self._previous(*args, **kwargs)
        # Not a bound method, which compilers of torch 2.11 cannot make.
        return type(self.model).forward(self.model, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        labels = kwargs.get("labels")
        if len(args) > self._labels_position:
            labels = args[self._labels_position]
        self._wanted = labels is not None and (self.model.training or self.forced)
        self._taken = self._computed = False
        try:
            output = self._forward(*args, **kwargs)
            fused, computed = self._taken, self._computed
        finally:
            self._wanted = self._taken = False
            self._hidden = None
        if not fused:
            return output
        if not computed:
            raise RuntimeError(
                f"fused_loss: expected {type(self.model).__name__} to compute its loss by "
                "self.loss_function, which it did not; untie it and tie it without fused_loss"
            )
        if isinstance(output, dict):
            return type(output)(**{key: output[key] for key in output if key != "logits"})
        return (output[0], None, *output[2:])  # loss, logits, and the rest

    def take(self, hidden: Tensor) -> bool:
        """Asked by the head: whether it is to return `hidden` instead of logits."""
        if not self._wanted:
            return False
        if self._taken:
            raise RuntimeError(
                "fused_loss: expected one call of the head in a call of the model, got a second "
                "one; untie the model, tie it without fused_loss and call embedding.loss(hidden, "
                "labels, shift=True)"
            )
        self._taken, self._hidden = True, hidden
        return True

    def loss(self, logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """In the place of the model's loss function."""
        hidden = self._hidden
        if hidden is None:
            return self._stock(logits, labels, *args, **kwargs)
        if logits.shape != hidden.shape:
            raise RuntimeError(
                f"fused_loss: expected the loss function to get what the head returned, "
                f"{tuple(hidden.shape)}, got {tuple(logits.shape)}; the model changes its logits "
                "in between. Tie it without fused_loss and call embedding.loss by hand"
            )
        self._computed = True
        return self._fused(hidden, labels, *args, **kwargs)

    def _fused(
        self,
        hidden: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_unknown: Any,  # a model's other options pass through here; the stock loss ignores them
    ) -> Tensor:
        """As the stock ForCausalLMLoss, with its arguments."""
        if vocab_size is not None and vocab_size != self.embedding.num_embeddings:
            raise ValueError(
                f"fused_loss: expected a vocabulary of {self.embedding.num_embeddings}, the rows "
                f"of the embedding, got vocab_size {vocab_size}; make config.vocab_size agree"
            )
        targets = (labels if shift_labels is None else shift_labels).to(hidden.device)
        if targets.numel() == hidden.shape[:-1].numel():
            targets = targets.view(hidden.shape[:-1])  # the stock loss flattens them
        loss = self.embedding.loss(
            hidden,
            targets,
            ignore_index=ignore_index,
            reduction="mean" if num_items_in_batch is None else "sum",
            shift=shift_labels is None,
        )
        assert isinstance(loss, Tensor)  # without return_logsumexp there is one result
        if num_items_in_batch is None:
            return loss
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss / num_items_in_batch


def fuse(model: Any, embedding: TiedEmbedding) -> None:
    """Installs a fused loss and compares it with the stock one on a few tokens.

    Raises:
        ValueError: the model computes its loss otherwise; nothing has been changed then.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    if "labels" not in _arguments(model) or not hasattr(model, "loss_function"):
        raise ValueError(
            f"{name}: expected a model that takes labels and computes its loss by "
            "self.loss_function, as language models of transformers v5 do; tie it without "
            "fused_loss and call embedding.loss(hidden, labels, shift=True)"
        )
    labels = probe_tokens(model).clone()
    labels[:, 1] = -100
    with evaluated(model):
        expected = run(model, labels).loss
    if not bool(expected.isfinite()):
        raise ValueError(
            f"{name}: expected a finite loss on a few tokens, to compare with, got "
            f"{float(expected)}; its weights hold NaN or infinity: initialise or load them first"
        )
    fused = FusedLoss(model, embedding)
    fused.install()
    head.fused = fused
    try:
        fused.forced = True
        loss = _fused_loss_of(model, labels)
        if not same(loss.float(), expected.float(), like=embedding.weight):
            raise ValueError(
                f"{name}: expected the loss {float(expected):.6g} of its own loss function, got "
                f"{float(loss):.6g}, so it computes something else than the cross-entropy of the "
                "next token; tie it without fused_loss"
            )
    except BaseException:
        head.fused = None
        fused.remove()
        raise
    finally:
        fused.forced = False


def _fused_loss_of(model: Any, labels: Tensor) -> Tensor:
    name = type(model).__name__
    try:
        with evaluated(model):
            return model(input_ids=probe_tokens(model), labels=labels).loss
    except Exception as error:
        if str(error).startswith("fused_loss: "):  # of the methods above, with their own remedies
            raise ValueError(f"{name}: {error}") from error
        raise ValueError(
            f"{name}: expected a model that does nothing with the head's output but give it to "
            f"self.loss_function, but without logits it raised {type(error).__name__}: {error}; "
            "tie it without fused_loss and call embedding.loss(hidden, labels, shift=True)"
        ) from error


def _arguments(model: Any) -> list[str]:
    return list(inspect.signature(model.forward).parameters)
