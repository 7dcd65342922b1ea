from pathlib import Path

import numpy as np
import pytest

from ropewalk.evals.default_model import held_out_documents
from ropewalk.evals.default_model.corpus import SourceFile, TrainingText, standard_library_files
from ropewalk.evals.default_model.held_out import SHORTEST, collect, write


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library with held-out files, tests, and folders that are to be passed over."""
    for name in ["site-packages/x.py", "encodings/cp1.py", "_sysconfigdata_linux.py", "empty.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.py" else "excluded " * 100)
    for number in range(60):
        marker = f"# file{number}\n" * 40
        (tmp_path / f"module{number}.py").write_text(marker)
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / "test" / f"test_module{number}.py").write_text(marker.replace("file", "test"))
    return tmp_path


def test_whether_a_file_is_held_out_depends_on_its_name_alone() -> None:
    assert SourceFile("a/b.py", b"x").is_held_out == SourceFile("a/b.py", b"y").is_held_out
    share = np.mean([SourceFile(f"module{n}.py", b"").is_held_out for n in range(4000)])
    assert share == pytest.approx(38 / 256, abs=0.02)


def test_tables_packages_and_empty_files_are_passed_over(library: Path) -> None:
    names = [file.name for file in standard_library_files(library)]
    assert names == sorted(names)
    assert len(names) == 120
    assert all("module" in name for name in names)


def test_no_held_out_byte_is_trained_on(library: Path) -> None:
    text = TrainingText(library)
    trained = b"".join(part.tobytes() for part in text._parts)
    files = list(standard_library_files(library))
    assert any(file.is_held_out for file in files)
    for file in files:
        assert (file.text.splitlines()[0] + b"\n" in trained) != file.is_held_out
    assert text.size == len(trained)


def test_windows_have_the_length_asked_for_and_follow_from_the_seed(library: Path) -> None:
    text = TrainingText(library)
    first = text.window(64, np.random.default_rng(3))
    assert first.shape == (64,)
    np.testing.assert_array_equal(first, text.window(64, np.random.default_rng(3)))


def test_a_library_without_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected Python source files"):
        list(standard_library_files(tmp_path))


def test_shipped_documents_are_held_out_and_long_enough() -> None:
    documents = held_out_documents()
    assert len(documents) >= 12
    for document in documents:
        assert SourceFile(document.name, b"").is_held_out
        assert len(document.text.encode()) >= SHORTEST


def test_documents_survive_writing(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for number in range(40):
        (library / f"module{number}.py").write_text("é = 1\n" * SHORTEST)
    documents = collect(library)
    assert documents
    write(documents, tmp_path / "text.xz")
    from ropewalk.evals.default_model import held_out

    assert held_out.read(tmp_path / "text.xz") == documents
