"""How much filler fits: as many whole sentences as leave a text within a number of tokens."""

from collections.abc import Callable

from ropewalk.evals.tasks import passkey_prompt


def filler_sentences(count: int) -> list[str]:
    """The first `count` sentences of filler."""
    cycle = passkey_prompt.FILLER_SENTENCES
    return [cycle[index % len(cycle)] for index in range(count)]


def most_sentences(tokens_with: Callable[[int], list[int]], room: int) -> tuple[int, list[int]]:
    """The largest number of sentences with which a text has at most `room` tokens.

    Args:
        tokens_with: number of sentences → the text's tokens.
        room: tokens; as many at least as the text without any filler has.

    Returns:
        The number, and the text's tokens with it.
    """
    shortest = len(tokens_with(0))
    # A guess from the mean cost of a sentence is at most a few sentences off: step from there.
    cycle = 5 * len(passkey_prompt.FILLER_SENTENCES)
    per_sentence = (len(tokens_with(cycle)) - shortest) / cycle
    count = int((room - shortest) / per_sentence)
    tokens = tokens_with(count)
    while len(tokens) > room:
        count -= 1
        tokens = tokens_with(count)
    while len(longer := tokens_with(count + 1)) <= room:
        count, tokens = count + 1, longer
    return count, tokens
