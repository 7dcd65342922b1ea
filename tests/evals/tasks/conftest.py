"""A tokenizer unlike the bundled model's."""

import pytest


@pytest.fixture
def merging_tokenizer():
    """Merges a digit with the space before it, as byte-pair tokenizers of the GPT-2 kind do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [chr(code) for code in range(32, 127)] + ["\n"]
    words = {piece: number for number, piece in enumerate([*pieces, *(f" {d}" for d in range(10))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\d|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="!", clean_up_tokenization_spaces=False
    )
