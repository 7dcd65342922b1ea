"""What a table of embeddings is initialised with, and the loss that a model starts at.

At initialisation the residual branches of a transformer are nearly zero, so its last hidden state
is its token's own embedding, normalised: h = e/σ for embeddings of standard deviation σ. Under a
tied head the token's own logit is then h · e ≈ dσ and the others are normal with variance dσ²:

    loss ≈ ln(e^(dσ) + (n − 1) e^(dσ²/2))

(kexue.fm/archives/9698.) With σ = 1/√d and d = 768 that is 27.7 where ln n = 9.9. Every remedy of
the article brings it near its floor ln n + dσ²/2: σ = ln(n)/d, for which e^(dσ) = n, or an output
form under which a token does not predict itself, for which the first term is e^(dσ²/2), too.
"""

import math
from typing import Literal, get_args

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.heads.output_forms import OUTPUT_FORMS, OutputForm
from ropewalk.blocks.heads.validation import require_finite

Initialisation = Literal["vocab", "normal", "inverse_sqrt"]
INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)


def initial_std(
    init: Initialisation, num_embeddings: int, embedding_dim: int, std: float | None = None
) -> float:
    """The standard deviation of a table's entries.

    Args:
        init: "vocab" is ln(n)/d, with which a tied head starts near ln n; "normal" is 0.02, or
            `std`; "inverse_sqrt" is 1/√d.
        num_embeddings: n.
        embedding_dim: d.
        std: the standard deviation of "normal".

    Raises:
        ValueError: an unknown name, a `std` that is not positive, or one beside a name that
            already says it.
        TypeError: `std` is not a number.
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"init: expected one of {', '.join(INITIALISATIONS)}, got {init!r}")
    if std is not None:
        require_positive("TiedEmbedding", std=std)
        if init != "normal":
            raise ValueError(
                f"std: expected none beside init={init!r}, which says it, got {std}; take "
                f"init='normal', std={std}"
            )
        return float(std)
    if init == "vocab":
        return math.log(num_embeddings) / embedding_dim
    return 0.02 if init == "normal" else 1 / math.sqrt(embedding_dim)


def expected_initial_loss(
    n: int, d: int, std: float, *, output: OutputForm = "identity", logit_scale: float = 1.0
) -> float:
    """The cross-entropy, in nats, that a language model starts at, before its first step.

    The model's last hidden state is assumed to be its token's normalised embedding, and targets to
    say nothing of the token before. It holds where dσ² is small; a mean of exponentials is larger
    than what a finite vocabulary shows once dσ² is not small against 2 ln n.

    Args:
        n: tokens of the vocabulary.
        d: width of an embedding.
        std: standard deviation σ of the embeddings' entries.
        output: the head's form; under all but "identity" no token is its own prediction.
        logit_scale: the factor on the logits.

    Returns:
        ln(e^(sdσ) + (n − 1) e^(s²dσ²/2)), s being the scale; ln n + s²dσ²/2 for the other forms.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument out of its range.

    Source: kexue.fm/archives/9698.

    Example:
        >>> round(expected_initial_loss(20000, 768, 768**-0.5), 2)
        27.71
    """
    require_integer("expected_initial_loss", 1, n=n, d=d)
    require_positive("expected_initial_loss", std=std)
    require_finite("expected_initial_loss", logit_scale=logit_scale)
    if output not in OUTPUT_FORMS:
        raise ValueError(f"output: expected one of {', '.join(OUTPUT_FORMS)}, got {output!r}")
    others = (logit_scale * std) ** 2 * d / 2
    own = logit_scale * std * d if output == "identity" else others
    # log(e^own + (n − 1) e^others), with the greater exponent taken out: 768 · 2 overflows.
    greatest = max(own, others)
    return greatest + math.log(math.exp(own - greatest) + (n - 1) * math.exp(others - greatest))
