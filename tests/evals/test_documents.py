"""Reading text and cutting it into documents of equal length."""

import numpy as np
import pytest
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from ropewalk.evals.default_model import Document
from ropewalk.evals.documents import cut, encode, read_texts
from ropewalk.evals.errors import InputError
from ropewalk.llm.tokens import prefix_tokens

TOKENIZER = ByT5Tokenizer(extra_ids=0)


def fast_tokenizer():
    """A word-level tokenizer that reports offsets and puts a token before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "?": 1, "the": 2, "rope": 3, "naïve": 4, "東京": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="?")


def test_documents_do_not_overlap_and_cover_every_file_first():
    texts = [Document("a", "abcdefghij"), Document("b", "ABC"), Document("c", "0123456")]
    documents = cut(texts, TOKENIZER, length=3, count=100)
    assert [document.name for document in documents] == ["a#1", "b", "c#1", "a#2", "c#2", "a#3"]
    written = [TOKENIZER.decode(document.tokens) for document in documents]
    assert written == ["abc", "ABC", "012", "def", "345", "ghi"]
    few = cut(texts, TOKENIZER, length=3, count=2)
    assert [document.name for document in few] == ["a#1", "b"]


def test_text_that_is_too_short_says_how_much_is_needed():
    with pytest.raises(InputError, match="11 tokens are needed in one file, the longest has 10"):
        cut([Document("a", "abcdefghij"), Document("b", "c")], TOKENIZER, length=11, count=1)


@pytest.mark.parametrize("text", ["plain", "naïve 東京 🙂", ""])
def test_byte_level_tokens_count_one_byte_each(text):
    tokens, ends = encode(TOKENIZER, text)
    assert len(tokens) == len(text.encode())
    assert ends.tolist() == list(range(1, len(tokens) + 1))


def test_bytes_follow_the_offsets_of_a_fast_tokenizer():
    text = "the naïve rope 東京"
    tokens, ends = encode(fast_tokenizer(), text)
    assert tokens.tolist() == [2, 4, 3, 5]
    assert ends.tolist() == [
        len(part.encode()) for part in ("the", "the naïve", "the naïve rope", text)
    ]
    (document,) = cut([Document("a", text)], fast_tokenizer(), length=4, count=1)
    assert document.bytes_of_last(2) == len(" rope 東京".encode())


def test_several_tokens_before_a_text_are_all_a_prefix_and_those_after_it_are_none():
    from tokenizers import processors

    tokenizer = fast_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A </s>",
        special_tokens=[("[gMASK]", 6), ("<sop>", 7), ("</s>", 8)],
    )
    assert tokenizer("a")["input_ids"] == [6, 7, 1, 8]
    assert prefix_tokens(tokenizer) == [6, 7]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfrope")
    assert [text.text for text in read_texts([tmp_path / "a.txt"])] == ["rope"]
    assert [text.text for text in read_texts([tmp_path])] == ["rope"]


def test_only_a_token_that_the_tokenizer_puts_first_is_a_prefix():
    assert prefix_tokens(fast_tokenizer()) == [0]
    assert prefix_tokens(TOKENIZER) == []


def test_files_and_folders_are_read_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.py").write_text("a")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "empty.txt").write_text("")
    assert [text.name for text in read_texts([tmp_path])] == ["b.txt", "deep/a.py"]
    assert [text.text for text in read_texts([tmp_path / "b.txt"])] == ["b"]


def test_held_out_text_is_the_default():
    texts = read_texts([])
    assert len(texts) >= 8
    assert all(len(text.text.encode()) >= 16_384 for text in texts)


def test_unreadable_text_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_texts([tmp_path / "binary"])
    with pytest.raises(InputError, match="does not exist"):
        read_texts([tmp_path / "missing"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="no text in"):
        read_texts([tmp_path / "folder"])


def test_other_slow_tokenizers_count_decoded_bytes():
    class Pairs:
        """Two characters a token, no offsets."""

        is_fast = False

        def __call__(self, text, **options):
            return {
                "input_ids": [
                    ord(a) * 1000 + ord(b) for a, b in zip(text[::2], text[1::2], strict=True)
                ]
            }

        def decode(self, tokens):
            return "".join(chr(token // 1000) + chr(token % 1000) for token in tokens)

    _, ends = encode(Pairs(), "abécdd")
    assert np.array_equal(ends, [2, 5, 7])
