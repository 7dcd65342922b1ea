"""`linear_cross_entropy`: the loss of a language model's head without its logits."""

from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.linear_cross_entropy.assemble import Loss, assemble
from ropewalk.kernels.linear_cross_entropy.reduction import Reduction


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, "vocabulary dim"],
    targets: Int[Tensor, "*batch"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    weight_per_class: Float[Tensor, " vocabulary"] | None = None,
    reduction: Reduction = "mean",
    return_logsumexp: bool = False,
    shift: bool = False,
    exact: bool = True,
    backend: Backend = "auto",
) -> Loss | tuple[Loss, Float[Tensor, "*batch"]]:
    """Cross-entropy of softcap(logit_scale · (hidden · weightᵀ + bias)), never held as a whole.

    The forward pass keeps one logsumexp a token; the backward computes the logits again, tile by
    tile, forms their gradient in float32 before it is rounded, and multiplies. That is one product
    of hidden · weightᵀ more than with logits in memory, and nothing of the size of the logits.

    Sums over the vocabulary and over tokens are float32, for half precision too, and so is the
    loss; gradients are rounded once, to the dtype of what they are the gradient of. Beside the
    gradients about 64 MiB are held, and in half precision a float32 sum of hidden's gradient. The
    loss can be differentiated once, and in reverse: no gradient of gradients, no `torch.func.grad`,
    no forward mode.

    Args:
        hidden: float16, bfloat16, float32 or float64, of any strides. Under `torch.autocast`
            hidden, weight and bias are first cast to its dtype.
        weight: the output embedding, one row a token of the vocabulary, in the dtype of `hidden`.
        targets: integer indices into the vocabulary.
        bias: added to the logits.
        ignore_index: the target of tokens that have none. They cost nothing: no logits are computed
            for them. Their hidden states must be finite on a GPU, as in torch's own loss.
        label_smoothing: ε in [0, 1): the target is 1 − ε of the true token and ε/V of each.
        z_loss: ζ ≥ 0, adds ζ · logsumexp², which keeps logits from drifting; 1e-4 is usual. Its
            mean is over the tokens that count, whatever their class weights.
        softcap: c of c · tanh(logits / c), after the scale.
        logit_scale: multiplies the logits, as in muP, Cohere or (as 1 / logits_scaling) Granite.
        weight_per_class: c_v in `torch.nn.functional.cross_entropy`'s sense; constants.
        reduction: "mean" divides by the sum of the targets' class weights (0 if that is 0), "sum",
            or "none" for a loss of each token, which may be weighted as one likes:
            `(losses * weights).sum() / weights.sum()`.
        return_logsumexp: give the logsumexp of each token's logits too, 0 where it is ignored. It
            is differentiable.
        shift: hidden states at t predict targets at t + 1, so that a causal language model passes
            its input as targets, unshifted; results are one shorter. No copy of `hidden` is made.
        exact: False leaves out tiles of the gradient in which every probability is below what the
            dtype resolves; see `ropewalk.kernels.linear_cross_entropy.filter`. With label smoothing
            nothing is left out.
        backend: "auto", "triton" or "reference"; see
            `ropewalk.kernels.linear_cross_entropy.backend`.

    Returns:
        The loss, float32 (float64 for float64 tensors): a scalar, or of the targets' shape for
        "none", where ignored tokens are 0. Without any token that counts it is 0 with zero
        gradients. With `return_logsumexp` a tuple of it and the logsumexp.

    Raises:
        ValueError: sizes, dtypes, devices or options that do not fit; targets outside of the
            vocabulary (on a CUDA device a device-side assertion, as in torch); an impossible
            backend.
        TypeError: an argument of the wrong kind.

    Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009.

    Example:
        >>> hidden = torch.randn(2, 16, 64, requires_grad=True)
        >>> weight = torch.randn(1000, 64, requires_grad=True)
        >>> tokens = torch.randint(1000, (2, 16))
        >>> linear_cross_entropy(hidden, weight, tokens, shift=True).backward()
    """
    return assemble(
        hidden, weight, targets, None, bias=bias, ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap, logit_scale=logit_scale,
        weight_per_class=weight_per_class, reduction=reduction, return_logsumexp=return_logsumexp,
        shift=shift, exact=exact, backend=backend,
    )  # fmt: skip
