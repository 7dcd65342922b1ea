"""The command line of `ropewalk ask`, and files that the bundled model can look things up in."""

import random
import string
from pathlib import Path

import pytest

from ropewalk.evals import cli


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs the command line in an empty folder; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["ask", *arguments])
        return code, *capfd.readouterr()

    return run


def lines_of_pairs(folder: Path, count: int, *, seed: int) -> list[dict[str, str]]:
    """Files of lines `key = value`, which the bundled model has learned to look up."""
    generator = random.Random(seed)

    def word(low: int, high: int) -> str:
        return "".join(
            generator.choices(
                string.ascii_lowercase + string.digits, k=generator.randint(low, high)
            )
        )

    folder.mkdir(exist_ok=True)
    files = [{word(3, 7): word(3, 8) for _ in range(12)} for _ in range(count)]
    for number, pairs in enumerate(files):
        lines = [f"{key} = {value}\n" for key, value in pairs.items()]
        (folder / f"{number}.txt").write_text("".join(lines))
    return files


@pytest.fixture(scope="session")
def write_pairs():
    """`write_pairs(folder, count, seed=…)`: files of lines `key = value`, which it gives back."""
    return lines_of_pairs
