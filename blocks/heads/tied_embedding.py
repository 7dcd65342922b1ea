"""`TiedEmbedding`: one table that is a model's input embedding and its output head.

    embed(ids)      = input_scale · E[ids]
    logits(hidden)  = softcap(logit_scale · (hidden · S(E)ᵀ + b)),   softcap(z) = c · tanh(z / c)
    loss(hidden, y) = cross-entropy of those logits, which are never held

S is the output form (`output_forms`). The tie cannot be lost because there is one module with one
parameter: copying, `to_empty`, loading and sharding have nothing that they could take apart. What
breaks ties elsewhere is two modules that hold one tensor.

Sources: kexue.fm/archives/9698 for the initialisation and the forms; arXiv 2203.03466 (muP) for the
scale of the logits; arXiv 2408.00118 §2 (Gemma 2) for the soft cap.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.heads.initialisation import Initialisation, initial_std
from ropewalk.blocks.heads.output_forms import OutputForm, check_output, permute, unpermute
from ropewalk.blocks.heads.sharding import like_parameter
from ropewalk.blocks.heads.validation import (
    check_hidden,
    check_ids,
    padding_row,
    require_finite,
    require_floating,
)
from ropewalk.kernels.linear_cross_entropy import Backend, Reduction, linear_cross_entropy

Loss = Float[Tensor, ""] | Float[Tensor, "*batch"]


class TiedEmbedding(nn.Module):
    """A token embedding that is also the output head.

    Under FSDP2, a head that is wrapped by itself needs its methods announced:
    `register_fsdp_forward_method(head, "loss")`, and "logits"; as a part of a wrapped model, not.

    Example:
        >>> head = TiedEmbedding(1000, 64)
        >>> tokens = torch.randint(1000, (2, 16))
        >>> hidden = head(tokens)                     # a transformer comes between
        >>> head.loss(hidden, tokens, shift=True).backward()

    Attributes:
        weight: the table E, (num_embeddings, embedding_dim).
        bias: b, (num_embeddings,), or None.
        projection: P of the "orthogonal" form, (embedding_dim, embedding_dim), or None.
        output_weight: the output matrix of the "untied" form, of the table's shape, or None.

    Args:
        num_embeddings: tokens of the vocabulary, n.
        embedding_dim: width of an embedding, d.
        init: "vocab" draws from a normal of standard deviation ln(n)/d, with which a model starts
            near ln n; "normal" of 0.02, or `std`; "inverse_sqrt" of 1/√d.
        std: the standard deviation for init="normal".
        output: how the output matrix is made of the table: "identity", "swap", "shuffle",
            "orthogonal" or "untied"; see `ropewalk.blocks.heads.output_forms`.
        logit_scale: multiplies the logits, as in muP and Cohere.
        input_scale: multiplies the embeddings, √d in Gemma.
        softcap: c of the soft cap on the logits; none if None.
        bias: whether the logits have a bias. It starts at zero.
        padding_idx: as in `nn.Embedding`: this row starts at zero and gets no gradient from the
            input. The head treats it like any other token, so its row does learn from there to
            become improbable; mark padding in the targets with `ignore_index`.
        device: of the parameters; "meta" for none yet: `to_empty` and `reset_parameters` later.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: an argument out of its range, an unknown name, `std` beside an `init` that says
            it, "swap" of an odd or "shuffle" of a prime width.
        TypeError: an argument of the wrong kind.
    """

    weight: Tensor
    bias: nn.Parameter | None
    projection: nn.Parameter | None
    output_weight: nn.Parameter | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        init: Initialisation = "vocab",
        std: float | None = None,
        output: OutputForm = "identity",
        logit_scale: float = 1.0,
        input_scale: float = 1.0,
        softcap: float | None = None,
        bias: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        name = type(self).__name__
        require_integer(name, 1, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        require_floating(name, dtype)
        initial_std(init, num_embeddings, embedding_dim, std)
        check_output(output, embedding_dim)
        require_finite(name, logit_scale=logit_scale, input_scale=input_scale)
        if softcap is not None:
            require_positive(name, softcap=softcap)
        if not isinstance(bias, bool):
            raise TypeError(
                f"bias: expected True or False, got {type(bias).__name__}; assign values to "
                ".bias.data afterwards"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.init: Initialisation = init
        self.std = std
        self.output: OutputForm = output
        self.logit_scale, self.input_scale, self.softcap = logit_scale, input_scale, softcap
        self.padding_idx = padding_row(padding_idx, num_embeddings)

        def parameter(*shape: int, wanted: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None

        square = (embedding_dim, embedding_dim)
        table = (num_embeddings, embedding_dim)
        self.register_parameter("weight", parameter(*table))
        self.register_parameter("bias", parameter(num_embeddings, wanted=bias))
        self.register_parameter("projection", parameter(*square, wanted=output == "orthogonal"))
        self.register_parameter("output_weight", parameter(*table, wanted=output == "untied"))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises every parameter, also after `to_empty` and when sharded."""
        if self.weight.is_meta:
            return
        std = initial_std(self.init, self.num_embeddings, self.embedding_dim, self.std)
        self.weight.normal_(std=std)
        if self.padding_idx is not None:
            kept = torch.ones(self.num_embeddings, 1, device=self.weight.device)
            kept[self.padding_idx] = 0.0
            self.weight.mul_(like_parameter(kept.to(self.weight.dtype), self.weight))
        if self.bias is not None:
            self.bias.zero_()
        if self.output_weight is not None:
            self.output_weight.normal_(std=std)
        self._reset_projection()

    @torch.no_grad()
    def _reset_projection(self) -> None:
        if self.projection is None or self.projection.is_meta:
            return
        # A decomposition in half precision is neither exact nor there on every device.
        exact = torch.promote_types(self.projection.dtype, torch.float32)
        drawn = torch.empty(self.projection.shape, dtype=exact, device=self.projection.device)
        nn.init.orthogonal_(drawn)
        self.projection.copy_(like_parameter(drawn.to(self.projection.dtype), self.projection))

    def embed(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Embeddings of tokens, times `input_scale`.

        Args:
            ids: int64 or int32, below `num_embeddings`.

        Raises:
            ValueError: ids of another dtype.
            TypeError: not a tensor.
            IndexError: ids outside of the table (on a CUDA device an assertion there).
        """
        check_ids(ids)
        embedded = nn.functional.embedding(ids, self.weight, self.padding_idx)
        return embedded if self.input_scale == 1.0 else embedded * self.input_scale

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """`embed`."""
        return self.embed(ids)

    def raw_logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocabulary"]:
        """The product hidden · S(E)ᵀ + b, before the scale and the soft cap.

        Raises:
            ValueError: `hidden` has another width, device or, without autocast, dtype.
            TypeError: not a tensor.
        """
        return nn.functional.linear(self._turned(hidden), self._matrix(), self.bias)

    def logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocabulary"]:
        """The logits, in the dtype of `hidden`, or autocast's.

        Args:
            hidden: the last hidden states, in the dtype of the table.

        Raises:
            ValueError: `hidden` has another width, device or, without autocast, dtype.
            TypeError: not a tensor.
        """
        logits = self.raw_logits(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def loss(
        self,
        hidden: Float[Tensor, "*batch dim"],
        targets: Int[Tensor, "*batch"],
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        weight_per_class: Float[Tensor, " vocabulary"] | None = None,
        reduction: Reduction = "mean",
        return_logsumexp: bool = False,
        shift: bool = False,
        exact: bool = True,
        backend: Backend = "auto",
    ) -> Loss | tuple[Loss, Float[Tensor, "*batch"]]:
        """The cross-entropy of `logits(hidden)`, without holding them.

        Args:
            hidden: the last hidden states, in the dtype of the table.
            targets: the tokens to be predicted.
            ignore_index: the target of positions that have none.
            label_smoothing: ε of the uniform distribution that is mixed into the targets.
            z_loss: factor on the squared logsumexp.
            weight_per_class: factor on the loss of each token of the vocabulary.
            reduction: "mean", "sum" or "none".
            return_logsumexp: give the logsumexp of each position's logits too.
            shift: position t predicts targets at t + 1, so that the model's input is the target.
            exact: False leaves out gradients below the dtype's resolution.
            backend: who computes.

        Returns:
            As `ropewalk.kernels.linear_cross_entropy.linear_cross_entropy`, which says more.

        Raises:
            ValueError: sizes, dtypes or options that do not fit.
            TypeError: an argument of the wrong kind.
        """
        return linear_cross_entropy(
            self._turned(hidden),
            self._matrix(),
            targets,
            bias=self.bias,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            weight_per_class=weight_per_class,
            reduction=reduction,
            return_logsumexp=return_logsumexp,
            shift=shift,
            exact=exact,
            backend=backend,
        )

    def output_matrix(self) -> Float[Tensor, "vocabulary dim"]:
        """S(E): the matrix of an `nn.Linear` that computes `raw_logits`.

        The table itself for "identity", otherwise a tensor that is computed here and now. Late in
        training, its copy may become the `output_weight` of an "untied" head with this `weight`,
        and nothing changes at that moment.
        """
        if self.projection is not None:
            return nn.functional.linear(self.weight, self.projection)
        return permute(self._matrix(), self.output)

    def _matrix(self) -> Tensor:
        return self.weight if self.output_weight is None else self.output_weight

    def _turned(self, hidden: Tensor) -> Tensor:
        """S⁻¹(h), so that the table itself can be multiplied with."""
        check_hidden(hidden, self._matrix())
        return (
            hidden @ self.projection
            if self.projection is not None
            else unpermute(hidden, self.output)
        )

    def extra_repr(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"init={self.init!r}"]
        usual = {"logit_scale": 1.0, "input_scale": 1.0, "output": "identity"}
        for name in ("std", "output", "logit_scale", "input_scale", "softcap", "padding_idx"):
            if getattr(self, name) != usual.get(name):
                parts.append(f"{name}={getattr(self, name)!r}")
        if self.bias is not None:
            parts.append("bias=True")
        return ", ".join(parts)
