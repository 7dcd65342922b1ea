"""The command line: what works, and that all bad input ends in one line and exit code 2."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from ropewalk.evals import cli
from ropewalk.evals.demo import VARIANTS, demo_request
from ropewalk.llm.variants import parse_variant


@pytest.fixture
def command(tiny_model, tmp_path, monkeypatch, capfd):
    """Runs the command line in an empty folder; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        given = [argument.replace("TINY", str(tiny_model)) for argument in arguments]
        code = cli.run(given)
        return code, *capfd.readouterr()

    return run


EVAL = (
    *("eval", "--model", "TINY", "--length", "320,400", "--documents", "2"),
    *("--depth", "0,1", "--trials", "1", "--out", "run"),
)
LOSS = (
    *("eval", "--model", "TINY", "--length", "320,400", "--documents", "2"),
    *("--task", "perplexity", "--out", "run"),
)


def test_eval_measures_reports_and_continues(command, tmp_path):
    code, out, _ = command(*EVAL, "--variant", "rope", "--variant", "rerope:window=30+log-n")
    assert code == 0
    assert "rerope:window=30+log-n" in out
    assert "bits per byte" in out
    assert "rerope(window=30) + log-n(length=160, clamp=true)" in out
    assert {path.name for path in Path("run").iterdir()} == {
        "run.json",
        "run.lock",
        "report.html",
        "perplexity.png",
        "passkey.png",
    }
    before = Path("run/run.json").read_bytes()
    assert command(*EVAL, "--variant", "rope", "--variant", "rerope:window=30+log-n")[0] == 0
    assert Path("run/run.json").read_bytes() == before


def test_report_draws_again_from_the_file_alone(command):
    command(*EVAL)
    Path("moved").mkdir()
    shutil.copy("run/run.json", "moved/run.json")
    code, out, _ = command("report", "moved")
    assert code == 0
    assert "rope" in out
    assert Path("moved/report.html").read_text() == Path("run/report.html").read_text()
    assert Path("moved/passkey.png").read_bytes() == Path("run/passkey.png").read_bytes()


def test_variants_lists_every_rule(command):
    code, out, _ = command("variants")
    assert code == 0
    for expected in ("ntk-mixed", "exponent: float [0.625]", "9706", "trained length / 4", "log-n"):
        assert expected in out


def test_version(command):
    assert command("--version") == (0, f"ropewalk {version('ropewalk')}\n", "")


def test_text_of_ones_own_is_evaluated(command, tmp_path):
    (tmp_path / "book.txt").write_text("to lay a rope one walks backwards, " * 40)
    code, _, _ = command(*LOSS, "--text", "book.txt")
    assert code == 0
    documents = json.loads(Path("run/run.json").read_text())["configuration"]["tasks"]
    assert [d["name"] for d in documents["perplexity"]["documents"]] == ["book.txt#1", "book.txt#2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--variant", "rerop"), "unknown variant 'rerop'; did you mean 'rerope'? known: rope"),
        (("--variant", "rerope:windw=1"), "did you mean 'window'? known: window"),
        (("--variant", "ntk-aware:factor=0"), "factor"),
        (("--variant", "ntk-aware:factor=-4"), "factor"),
        (("--variant", "rerope+self-extend"), "two parts of kind distance"),
        (("--variant", "rope", "--variant", "rope"), "given twice"),
        (("--variant", "rope@"), "names no model after '@'"),
        (("--variant", "rope@./nowhere"), "is no folder"),
        (("--task", "perplexty"), "unknown task 'perplexty'; did you mean 'perplexity'?"),
        (("--length", "640,320"), "lengths must be ascending, got 640,320; write 320,640"),
        (("--length", "320,320"), "lengths must be ascending"),
        (("--length", "320,x"), "--length expects whole numbers separated by commas, got '320,x'"),
        (("--length", ""), "--length expects whole numbers"),
        (("--length", "0,320"), "lengths must be at least 2"),
        (("--length", "100,320"), "task passkey needs lengths of at least 2"),
        (("--length", "320,4000000"), "4000000 tokens are needed in one file, the longest has"),
        (("--text", "short.txt"), "400 tokens are needed in one file, the longest has 6"),
        (("--text", "missing.txt"), "text 'missing.txt' does not exist"),
        (("--score-tokens", "320"), "--score-tokens must be smaller than the shortest length 320"),
        (("--score-tokens", "0"), "--score-tokens must be at least 1"),
        (("--documents", "0"), "--documents must be at least 1"),
        (("--trials", "-1"), "--trials must be at least 1"),
        (("--depth", "0,2"), "depths must lie between 0 and 1"),
        (("--depth", "1,0"), "depths must be ascending"),
        (("--dtype", "float8"), "unknown dtype 'float8'"),
        (("--device", "warp"), "device 'warp' cannot be used"),
        (("--model", "./nowhere"), "model './nowhere' is no folder"),
        (("--model", "defaul"), "did you mean 'default'"),
        (("--out", "short.txt"), "is not a folder"),
        (("--out", "short.txt/deep"), "is not a folder"),
        (("--device", "meta"), "device 'meta' holds no values"),
        (("--variant", "ntk-aware:factor=1e300"), "a value that is too large"),
        (("--variant", "rerope:window=99999999999999999999"), "must be below 2**31"),
        (("--length", "320,99999999999999999999"), "lengths must be below 2**31"),
        (("--threads", "0"), "--threads"),
        (("--threads", "99999999999999999999"), "--threads"),
        (("--unknown",), "--unknown"),
        (("stray",), "stray"),
    ],
)
def test_bad_input_ends_in_one_line_with_code_2(
    command, tmp_path, monkeypatch, arguments, expected
):
    (tmp_path / "short.txt").write_text("short\n")
    monkeypatch.setattr("ropewalk.evals.models.ModelSource.load", None)
    code, out, error = command(*EVAL, *arguments)
    assert code == 2
    assert out == ""
    assert error.startswith("ropewalk: error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    assert (tmp_path / "short.txt").read_text() == "short\n"


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("passkey", ("--text", "short.txt"), "--text is only read by task perplexity"),
        ("passkey", ("--documents", "3"), "--documents is only read by task perplexity"),
        ("passkey", ("--score-tokens", "3"), "--score-tokens is only read by task perplexity"),
        ("perplexity", ("--depth", "0"), "--depth is only read by tasks passkey and nbce"),
        ("perplexity", ("--trials", "3"), "--trials is only read by tasks passkey and nbce"),
        ("perplexity", ("--seed", "3"), "leave it out or add --task passkey"),
        ("passkey", ("--contexts", "1,2"), "--contexts is only read by task nbce"),
        ("passkey", ("--context-length", "9"), "leave it out or add --task nbce"),
        ("nbce", ("--length", "320"), "--length is only read by tasks perplexity and passkey"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(command, tmp_path, task, arguments, expected):
    (tmp_path / "short.txt").write_text("short\n")
    code, out, error = command("eval", "--model", "TINY", "--task", task, *arguments)
    assert (code, out) == (2, "")
    assert expected in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--contexts", "0,2"), "--contexts must be at least 1, got 0,2"),
        (("--contexts", "4,2"), "--contexts must be ascending, got 4,2"),
        (("--contexts", "a"), "--contexts expects whole numbers"),
        (("--context-length", "0"), "--context-length must be at least 1"),
        (("--context-length", "100"), "contexts of at least 206 tokens, got 100; give a larger"),
        ((), "contexts of at least 206 tokens, got 120; give a larger --context-length"),
    ],
)
def test_bad_contexts_end_in_one_line_with_code_2(command, tmp_path, arguments, expected):
    code, out, error = command("eval", "--model", "TINY", "--task", "nbce", *arguments)
    assert (code, out) == (2, "")
    assert expected in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({"variant": "rerop:x=1"}, "says it was trained with 'rerop:x=1': unknown variant 'rerop'"),
        ("rerope", "says it was trained with 'rerope'; the key"),
        ({"variant": 3}, "says it was trained with 3; the key"),
    ],
)
def test_a_config_that_notes_no_variant_there_is_gives_one_line(
    command, tmp_path, tiny_model, noted, expected
):
    folder = shutil.copytree(tiny_model, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"ropewalk": noted}))
    code, out, error = command(*EVAL, "--model", "odd")
    assert (code, out) == (2, "")
    assert error.startswith("ropewalk: error: model 'odd' ")
    assert expected in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "configuration": 3}'])
def test_a_damaged_run_is_refused_in_one_line(command, content):
    Path("run").mkdir()
    Path("run/run.json").write_text(content)
    for arguments in (EVAL, ("report", "run")):
        code, out, error = command(*arguments)
        assert (code, out) == (2, "")
        assert "run.json' is damaged: 'configuration' is missing or malformed" in error
        assert error.count("\n") == 1
    assert [path.name for path in Path("run").iterdir()] == ["run.json"]


def test_a_run_whose_figures_are_missing_is_refused_by_report(command):
    command(*EVAL)
    content = json.loads(Path("run/run.json").read_text())
    for key in ("model", "models", "lengths", "variants", "tasks"):
        broken = {name: value for name, value in content["configuration"].items() if name != key}
        Path("run/run.json").write_text(json.dumps(content | {"configuration": broken}))
        code, out, error = command("report", "run")
        assert (code, out) == (2, "")
        assert "is damaged" in error
        assert error.count("\n") == 1
    for key in ("nats", "bytes"):
        results = [{name: v for name, v in r.items() if name != key} for r in content["results"]]
        Path("run/run.json").write_text(json.dumps(content | {"results": results}))
        code, _, error = command("report", "run")
        assert code == 2
        assert "is damaged" in error


def test_other_peoples_folders_are_left_alone(command, tmp_path):
    Path("run").mkdir()
    Path("run/report.html").write_text("mine")
    code, out, error = command(*EVAL)
    assert (code, out) == (2, "")
    assert "is no run and not empty ('report.html' is in it)" in error
    assert [path.name for path in Path("run").iterdir()] == ["report.html"]
    assert Path("run/report.html").read_text() == "mine"


def test_a_model_that_cannot_be_loaded_leaves_no_folder(command, tmp_path, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    code, out, error = command(*EVAL, "--model", "broken", "--out", "runs/deep")
    assert (code, out) == (2, "")
    assert "cannot load model" in error
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    Path("mine").mkdir()
    assert command(*EVAL, "--model", "broken", "--out", "mine")[0] == 2
    assert list(Path("mine").iterdir()) == []


def test_another_configuration_is_refused_before_loading(command, monkeypatch):
    command(*EVAL)
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    monkeypatch.setattr("ropewalk.evals.models.ModelSource.load", None)
    code, out, error = command(*EVAL, "--trials", "2")
    assert (code, out) == (2, "")
    assert "another configuration (different: tasks)" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.mark.parametrize("arguments", [("report", "nowhere"), ("report",), ("nonsense",), ()])
def test_other_commands_refuse_in_one_line_too(command, arguments):
    code, _, error = command(*arguments)
    assert code == 2
    if arguments:
        assert error.startswith("ropewalk: error: ")
        assert error.count("\n") == 1


def test_interrupting_says_how_to_go_on(command, monkeypatch):
    def interrupt(request, console):
        raise KeyboardInterrupt

    monkeypatch.setattr("ropewalk.evals.runner.evaluate", interrupt)
    code, _, error = command(*EVAL)
    assert code == 130
    assert "the same command continues" in error


def test_the_demo_asks_for_every_variant_on_held_out_text(tmp_path):
    request = demo_request(out=tmp_path / "demo")
    request.check()
    assert request.lengths == (512, 1024, 2048, 4096)
    assert demo_request(full=True).lengths[-2:] == (8192, 16384)
    for variant in VARIANTS:
        parse_variant(variant)
    assert request.variants[0] == "rope"
    assert request.text == ()
