"""An earlier commit's process: which code it runs, what it answers, how it ends."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import run
from benchmarks.attention import Shape
from benchmarks.case import Unavailable
from benchmarks.earlier import EarlierCommit, full_name, process
from benchmarks.earlier import attention as earlier_attention
from benchmarks.earlier.attention import AttentionBesideEarlier
from benchmarks.evaluation import Evaluation, EvaluationWorkload
from ropewalk.blocks.rotary import ReRoPE

ROOT = Path(__file__).resolve().parents[2]
SMALL = Evaluation(ReRoPE(16), length=96, longest=96, documents=2, scored=32)


def git(place, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(place), *options, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose only commit is a library of a few lines; its files then change."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    place = tmp_path / "repository"
    files = {
        "blocks/rotary/__init__.py": """
            class ReRoPE:
                def __init__(self, window):
                    self.window = window
            class RotaryEmbedding:
                def __init__(self, head_dim):
                    print("a library that talks")
            """,
        "kernels/rotary_attention/__init__.py": """
            def rotary_attention(query, key, value, *, rotary, distance):
                if distance.window == 13:
                    raise ValueError("thirteen\\nis too much")
                if distance.window == 14:
                    import os, sys
                    print("the last words", file=sys.stderr, flush=True)
                    os._exit(3)
                return value + distance.window
            """,
        "llm/__init__.py": "",
        "evals/__init__.py": "",
    }
    for name, text in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()[1:]
        file.write_text("\n".join(line[12:] for line in lines) + "\n")
    git(place.parent, "init", "-q", str(place))
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "first")
    (place / "kernels/rotary_attention/__init__.py").write_text("raise ImportError('changed')\n")
    monkeypatch.setattr(process, "ROOT", place)
    return place


@pytest.fixture
def small_process(repository):
    started = EarlierCommit("HEAD")
    yield started
    started.close()


def attention(window, **more):
    rule = {"kind": "ReRoPE", "parameters": {"window": window}}
    sizes = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 5, "keys": 5, "head_dim": 4}
    return {"attention": {"rule": rule, **sizes}, **more}


def test_the_commits_code_runs_and_not_the_files_that_lie_there_now(small_process):
    path = small_process.new_file()
    sample, answer = small_process.run(attention(3, output=str(path)))
    assert sample == (answer["seconds"], answer["processor"])
    assert sample.seconds > 0
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 2, 5, 4, generator=generator)
    torch.randn(1, 1, 5, 4, generator=generator)
    value = torch.randn(1, 1, 5, 4, generator=generator)
    torch.testing.assert_close(torch.load(path, weights_only=True), value + 3, rtol=0, atol=0)
    assert small_process.new_file() != path


def test_an_error_there_is_told_here_and_the_next_request_is_answered(small_process):
    with pytest.raises(RuntimeError, match=r"^commit [0-9a-f]{7}: ValueError: thirteen$"):
        small_process.run(attention(13))
    request = attention(12)
    request["attention"]["rule"]["kind"] = "ReReRoPE"
    with pytest.raises(RuntimeError, match=r"AttributeError: .* has no attribute 'ReReRoPE'"):
        small_process.run(request)
    assert small_process.run(attention(12))[0].seconds > 0


def test_a_process_that_ends_says_its_last_words(small_process):
    for _ in range(2):  # asked again, it is still known why
        with pytest.raises(RuntimeError, match="its process ended: the last words"):
            small_process.run(attention(14))


def test_closing_ends_the_process_and_removes_its_files(repository):
    started = EarlierCommit("HEAD")
    assert (started.folder / "ropewalk" / "blocks").is_dir()
    started.close()
    assert started._process.returncode == 0
    assert not started.folder.exists()


def test_code_from_elsewhere_is_refused(repository, tmp_path):
    """As where an installed package fills in for a module that the commit lacks."""
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("")
    module = repository / "kernels/rotary_attention/__init__.py"
    module.write_text(
        "import importlib.util, sys\n"
        f"found = importlib.util.spec_from_file_location('ropewalk.other', {str(elsewhere)!r})\n"
        "sys.modules['ropewalk.other'] = importlib.util.module_from_spec(found)\n"
        "def rotary_attention(*inputs, **options): return inputs[0]\n"
    )
    git(repository, "commit", "-q", "-a", "-m", "second")
    started = EarlierCommit("HEAD")
    try:
        with pytest.raises(
            RuntimeError, match=r"expected ropewalk\.other from .*, got .*elsewhere"
        ):
            started.run(attention(3))
    finally:
        started.close()


def test_a_commit_is_named_in_full(repository):
    assert full_name("HEAD") == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["0" * 40, "never-was", "--all", "HEAD:blocks"])
def test_a_commit_that_is_not_there_is_unavailable(repository, name):
    with pytest.raises(Unavailable, match="is not to be had here: "):
        EarlierCommit(name)


def test_without_a_checkout_or_git_it_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(Unavailable, match="is not to be had here: "):
        full_name("HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="git cannot run"):
        full_name("HEAD")


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("evaluation", "error: --before: commit 'never-was' is not to be had here"),
        ("rotary", "error: --before is for the suite evaluation, not rotary"),
    ],
)
def test_the_command_refuses_what_it_cannot_compare_with(
    suite, message, repository, tmp_path, capsys
):
    options = ["--suite", suite, "--device", "cpu", "--out", str(tmp_path / "run.json")]
    assert run.main([*options, "--before", "never-was"]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_the_last_commit_evaluates_and_attends_as_today(monkeypatch):
    """The whole way, once: git, the process, the model, and both checks."""
    try:
        started = EarlierCommit("HEAD")
    except Unavailable as reason:
        pytest.skip(str(reason))
    for module in (sys.modules["benchmarks.evaluation"], earlier_attention):
        monkeypatch.setattr(module, "earlier", lambda commit: started)
    try:
        evaluation = EvaluationWorkload(SMALL, "HEAD")
        sample = evaluation.build("before")()
        assert sample.seconds > 0
        assert evaluation.check("before").passes
        shape = Shape(1, 4, 2, 95, 95, 64, torch.float32, "cpu", ReRoPE(16))
        attention = AttentionBesideEarlier(shape, "HEAD")
        attention.build("before")()
        assert attention.check("before").error < 1e-5
    finally:
        started.close()
