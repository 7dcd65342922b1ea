"""Which files are read, and under which names."""

from pathlib import Path

import pytest

from ropewalk.evals.ask.contexts import read_contexts
from ropewalk.evals.errors import InputError


def test_files_of_a_folder_that_are_left_out_are_said(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 2, seed=10)
    (tmp_path / "files" / "binary").write_bytes(b"\xff\xfe\x00\xff")
    (tmp_path / "files" / "blank").write_text(" \n")
    (tmp_path / "files" / ".hidden").write_text("text")
    (tmp_path / "files" / "far").symlink_to(tmp_path)
    (tmp_path / "files" / "gone").symlink_to("nowhere")
    key, value = next(iter(files[1].items()))
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, error = command(*options)
    assert (code, out) == (0, f"[1.txt] {value}\n")
    expected = [
        "ropewalk: skipped 'files/.hidden': hidden",
        "ropewalk: skipped 'files/binary': not UTF-8 text",
        "ropewalk: skipped 'files/blank': empty",
        "ropewalk: skipped 'files/far': a link to a folder",
        "ropewalk: skipped 'files/gone': no file",
    ]
    assert error.splitlines() == expected
    for number in range(6):
        (tmp_path / "files" / f"{number}.blank").write_text("")
    code, _, error = command(*options)
    assert code == 0
    (line,) = error.splitlines()
    assert line.startswith("ropewalk: skipped 11 files: 7 empty, ")
    assert "1 not UTF-8 text" in line


def test_names_are_those_of_files_unless_two_are_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one/a.txt", "one/deep/b.txt", "two/a.txt", "one/.hidden", "one/blank"):
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if path.name == "blank" else f"\ufefftext of {place}")
    assert list(read_contexts([Path("one/a.txt")]).texts) == ["a.txt"]
    assert read_contexts([Path("one")]).texts == {
        "a.txt": "text of one/a.txt",
        "deep/b.txt": "text of one/deep/b.txt",
    }
    both = read_contexts([Path("one"), Path("two/a.txt")])
    assert list(both.texts) == ["one/a.txt", "one/deep/b.txt", "two/a.txt"]
    with pytest.raises(InputError, match=r"context 'two/a\.txt' is given twice"):
        read_contexts([Path("two"), Path("two/a.txt")])
