"""The passkey prompt: a five-digit number hidden in filler, asked for at the end.

The wording is the one of Mohtashami & Jaggi, "Landmark Attention" (arXiv 2305.16300, Appendix B),
which every passkey evaluation since has used. The pieces are kept apart so that a task can place
the needle at any depth and fill up to any length, counted in whatever unit its tokenizer has.
"""

PREAMBLE = (
    "There is an important info hidden inside a lot of irrelevant text. "
    "Find it and memorize it. I will quiz you about the important information there.\n"
)
FILLER_SENTENCES = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
)
QUESTION = "\nWhat is the pass key? The pass key is "
DIGITS = 5


def needle(passkey: str) -> str:
    """The sentence that hides the pass key; it states the number twice, as the original does."""
    return f"The pass key is {passkey}. Remember it. {passkey} is the pass key. "


def filler(characters: int) -> str:
    """Filler of exactly `characters` characters, cut from the cycle of five sentences."""
    cycle = "".join(FILLER_SENTENCES)
    return (cycle * (characters // len(cycle) + 1))[:characters]
