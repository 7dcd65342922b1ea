"""What hidden states, a vocabulary and targets look like: at initialisation, and after training.

    initial   hidden ~ N(0, 1) as after a norm, weight ~ N(0, 1/dim), targets uniform: logits are
              N(0, 1), each probability is near 1/vocabulary, the loss near ln vocabulary + ½
    trained   logits are the log frequency of each word, by Zipf's law, plus what speaks for three
              words that the context suggests, plus the noise of directions that are not quite
              orthogonal; targets are drawn from the softmax of just these logits, as a calibrated
              model would see them. Columns are about in the order of frequency, as the merges of a
              byte-pair vocabulary are, each displaced by a factor e^{N(0, ½)} in rank.

The second is for losses that skip what rounds to nothing: at initialisation that is nearly all of
the gradient's tiles in a large vocabulary and nothing in a small one, and neither is what a model
in training meets. How sharp it is: a loss of 2 to 3 nats, two thirds of the mass on the likeliest
word, and above bfloat16's 2⁻¹² are 3 probabilities in 10000 of 256000 words, 2 in 1000 of 32768.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Distribution = Literal["initial", "trained"]

RANK_OFFSET = 2.7  # Mandelbrot's: the most frequent words are less frequent than 1/rank
DISPLACEMENT = 0.5
SUGGESTED = (1.0, 0.7, 0.5)
"""How much the context speaks for each of its three words."""
STRENGTH = 10.0
"""The logit that a whole suggestion adds."""
CHUNK = 512


class Drawn(NamedTuple):
    """Inputs of a loss, float32: hidden (tokens, dim), weight (vocabulary, dim), targets."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor


def draw(
    distribution: Distribution,
    tokens: int,
    dim: int,
    vocabulary: int,
    generator: torch.Generator,
) -> Drawn:
    """Inputs of one of the two kinds, on the generator's device."""
    kind = initial if distribution == "initial" else trained
    return kind(tokens, dim, vocabulary, generator)


def initial(tokens: int, dim: int, vocabulary: int, generator: torch.Generator) -> Drawn:
    """A model before its first step."""
    device = generator.device
    weight = torch.randn(vocabulary, dim, generator=generator, device=device).mul_(dim**-0.5)
    hidden = torch.randn(tokens, dim, generator=generator, device=device)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return Drawn(hidden, weight, targets)


def trained(tokens: int, dim: int, vocabulary: int, generator: torch.Generator) -> Drawn:
    """A model that knows its language."""
    device = generator.device
    log_frequency = _log_frequency(vocabulary, generator)
    suggested = torch.multinomial(
        log_frequency.exp(), tokens * len(SUGGESTED), replacement=True, generator=generator
    ).view(tokens, -1)
    # |w|² = STRENGTH: a hidden state that is a word's direction gives that word this logit.
    weight = torch.randn(vocabulary, dim, generator=generator, device=device)
    weight.mul_((STRENGTH / dim) ** 0.5)
    hidden = torch.zeros(tokens, dim, device=device)
    for share, words in zip(SUGGESTED, suggested.unbind(1), strict=True):
        hidden += share * weight[words]
    frequent = torch.randn(dim, generator=generator, device=device)
    frequent /= frequent.norm()
    hidden += frequent
    weight.addr_(log_frequency, frequent)
    targets = [
        torch.multinomial((chunk @ weight.T).softmax(-1), 1, generator=generator).squeeze(1)
        for chunk in hidden.split(CHUNK)
    ]
    return Drawn(hidden, weight, torch.cat(targets))


def _log_frequency(vocabulary: int, generator: torch.Generator) -> Tensor:
    """Zipf's and Mandelbrot's law over columns that are nearly in order."""
    places = torch.arange(1.0, vocabulary + 1, device=generator.device).log()
    noise = torch.randn(vocabulary, generator=generator, device=generator.device)
    ranks = (places + DISPLACEMENT * noise).argsort().argsort()
    return -(ranks + RANK_OFFSET).log()
