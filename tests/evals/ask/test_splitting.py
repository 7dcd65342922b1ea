"""Files that are longer than the model reads."""

import hashlib
import json

import pytest

from ropewalk.evals.ask.splitting import split_texts
from ropewalk.evals.errors import InputError


def test_long_files_are_split_when_asked_for(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 2, seed=14)
    others = write_pairs(tmp_path / "others", 6, seed=15)
    long = [*others[:3], files[0], *others[3:]]
    text = "".join(f"{key} = {value}\n" for pairs in long for key, value in pairs.items())
    (tmp_path / "files" / "0.txt").write_text(text)
    key, value = list(files[0].items())[5]
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, _, error = command(*options)
    assert code == 2
    assert "split it with --split" in error
    code, out, _ = command(*options, "--split", "--prior", "2,1", "--json", "-")
    assert code == 0
    content = json.loads(out)
    first, *_, last = contexts = content["contexts"]
    parts = len(contexts) - 1
    assert [context["name"] for context in contexts] == [
        *(f"0.txt [{number}/{parts}]" for number in range(1, parts + 1)),
        "1.txt",
    ]
    assert parts > 1
    assert sum(context["tokens"] for context in contexts[:-1]) == len(text)
    room = 512 - len(f"\n\n{key} = ") - 64
    assert all(context["tokens"] <= room for context in contexts)
    assert first["sha256"] == contexts[1]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert last["sha256"] != first["sha256"]
    (answer,) = content["answers"]
    assert answer["text"] == value
    assert {span["name"] for span in answer["spans"]} < {context["name"] for context in contexts}
    code, out, _ = command(*options, "--split", "--prior", "0,1", "--json", "-")
    assert {span["context"] for span in json.loads(out)["answers"][0]["spans"]} == {parts}
    code, _, error = command(*options, "--split", "--max-new-tokens", "600")
    assert code == 2
    assert "--split: prefix, separator, question and --max-new-tokens leave no room" in error


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one\ntwo\nthree\n", ["one\ntwo\n", "three\n"]),
        ("one two three four", ["one two ", "three ", "four"]),
        ("abcdefghijklm", ["abcdefgh", "ijklm"]),
        ("éééééé", ["éééé", "éé"]),
        ("a\n" + "b" * 9, ["a\n", "b" * 8, "b"]),
        ("short", ["short"]),
        ("one\ntwo\n\n\n\n\n\n\n\n\n\n", ["one\ntwo\n"]),
    ],
)
def test_parts_end_at_lines_then_at_spaces(text, parts):
    split = split_texts({"t": text, "u": "x"}, 8, lambda part: len(part.encode()))
    assert [part for name, part in split.values() if name == "t"] == parts
    several = [f"t [{number}/{len(parts)}]" for number in range(1, len(parts) + 1)]
    assert list(split) == [*(several if len(parts) > 1 else ["t"]), "u"]


def test_parts_called_like_another_context_are_refused():
    texts = {"t": "one two three", "t [1/2]": "x"}
    with pytest.raises(InputError, match=r"both called 't \[1/2\]'"):
        split_texts(texts, 8, len)
