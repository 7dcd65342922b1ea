"""The command: a small run, its file, its pictures, its errors, and what a kill leaves."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import measure, plot, run
from benchmarks.result_file import ResultError, problem_of, read

ROOT = Path(__file__).resolve().parents[2]
ONE_CASE = ["--only", "rerope-16/forward/*"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def arguments(out: Path, *more: str, suite: str = "rotary_attention", device: str = "cpu"):
    return ["--suite", suite, "--device", device, "--quick", "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "suite",
    [
        *("rotary_attention", "rotary", "linear_cross_entropy", "context_merge"),
        *("monarch", "recurrent", "denoiser"),
    ],
)
def test_a_quick_run_measures_every_case_and_can_be_drawn(suite, device, tmp_path, capsys):
    out = tmp_path / "new" / "run.json"
    assert run.main(arguments(out, suite=suite, device=device)) == 0
    content = read(out)
    assert content["complete"]
    assert len(content["results"]) > 5
    for result in content["results"]:
        whole = suite == "recurrent" or result["name"].startswith("tiny/")  # layers and models
        ours = "triton" if device == "cuda" and not whole else "auto"
        assert "check" in result["peers"][ours], result
        for peer in result["peers"].values():
            if "median_ms" in peer:
                assert peer["min_ms"] <= peer["median_ms"] <= peer["max_ms"]
                assert peer["check"]["error"] <= peer["check"]["tolerance"]
    session = content["sessions"][0]
    assert session["ceilings"]["copy_gb_s"] > 0
    assert {"device", "versions", "threads", "commit", "load_at_start"} <= session.keys()
    assert plot.main([str(out), "--out", str(tmp_path / "plots")]) == 0
    pictures = list((tmp_path / "plots").glob("*.png"))
    assert len(pictures) >= 3
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_same_command_again_measures_nothing_and_keeps_the_file(tmp_path, capsys):
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE)) == 0
    before = out.read_text()
    assert not read(out)["complete"]  # one case is not the suite
    assert run.main(arguments(out, *ONE_CASE)) == 0
    assert out.read_text() == before
    assert "0 of" in capsys.readouterr().out


def test_a_failed_case_is_recorded_told_by_the_exit_code_and_tried_again_last(
    tmp_path, monkeypatch
):
    out = tmp_path / "run.json"
    patterns = ["--only", "plain/*/96", "--only", "rerope-16/forward/96"]
    with monkeypatch.context() as patched:

        def fail(workload, peer):
            raise RuntimeError("lost its way")

        patched.setattr("benchmarks.attention.AttentionWorkload.build", fail)
        assert run.main(arguments(out, "--only", "plain/forward/96")) == 1
    (result,) = read(out)["results"]
    assert {peer["error"] for peer in result["peers"].values()} == {"RuntimeError: lost its way"}
    assert run.main(arguments(out, *patterns)) == 0
    names = [result["name"] for result in read(out)["results"]]
    assert names == ["rerope-16/forward/96", "plain/training/96", "plain/forward/96"]
    assert {result["session"] for result in read(out)["results"]} == {1}


def test_a_wrong_result_is_an_error_and_not_timed(tmp_path, monkeypatch):
    from ropewalk.kernels.rotary_attention import rotary_attention

    def wrong(*inputs, **options):
        return rotary_attention(*inputs, **options) * 1.1

    monkeypatch.setattr("benchmarks.peers.library.rotary_attention", wrong)
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE)) == 1
    (result,) = read(out)["results"]
    assert "differs from the oracle by 0.1" in result["peers"]["auto"]["error"]
    assert "median_ms" not in result["peers"]["auto"]
    assert "median_ms" in result["peers"]["two-matrix"]


def test_a_result_that_is_no_number_can_be_written(tmp_path, monkeypatch):
    def nowhere(*inputs, **options):
        return inputs[0] * float("nan")

    monkeypatch.setattr("benchmarks.peers.library.rotary_attention", nowhere)
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE)) == 1
    (result,) = read(out)["results"]
    assert result["peers"]["auto"]["check"]["error"] is None


def test_running_out_of_memory_is_a_reason_and_no_failure():
    def greedy():
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    assert "out of memory" in measure._guarded(greedy)["skipped"]


def test_a_lost_device_ends_the_process_and_leaves_the_case_for_the_end():
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(measure.DeviceLost):
        measure._guarded(lost)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "nothing*"], "no case matches"),
        (["--suite", "rotary", "--only", "half/forward/64"], "holds a run with suite"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(more, message, tmp_path, capsys):
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE)) == 0
    capsys.readouterr()
    assert run.main([*arguments(out), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run.main(arguments(tmp_path / "run.json", device="cuda")) == 2
    assert capsys.readouterr().err == (
        "error: --device cuda: torch sees no CUDA device here; use --device cpu\n"
    )
    assert not (tmp_path / "run.json").exists()


def test_an_output_that_is_missing_or_foreign_is_one_line(tmp_path, capsys):
    assert run.main(["--suite", "rotary_attention", "--device", "cpu", "--quick"]) == 2
    assert "--out FILE.json is missing" in capsys.readouterr().err
    foreign = tmp_path / "notes.json"
    foreign.write_text('{"mine": 1}')
    assert run.main(arguments(foreign, *ONE_CASE)) == 2
    assert "no benchmark result" in capsys.readouterr().err
    assert foreign.read_text() == '{"mine": 1}'


def test_cases_are_listed_with_their_peers(tmp_path, capsys):
    assert run.main(["--suite", "rotary_attention", "--device", "cuda", "--list"]) == 0
    listed = capsys.readouterr().out
    for name in ("plain/forward/65536", "rerope-4096/training/32768", "decode/batch-8/131072"):
        assert name in listed
    for peer in ("sdpa-cudnn", "two-matrix", "flex", "flash-attn", "triton:plain"):
        assert peer in listed


def test_no_case_begins_after_the_minutes_are_over(tmp_path, capsys):
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE, "--minutes", "1e-9")) == 1
    assert "stopped after" in capsys.readouterr().out
    assert read(out)["results"] == []


@pytest.mark.parametrize("option", [("--threads", "0"), ("--seconds", "-1"), ("--minutes", "nan")])
def test_numbers_that_mean_nothing_are_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments(tmp_path / "run.json", *option))
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


def test_starting_over_forgets_what_was_measured(tmp_path):
    out = tmp_path / "run.json"
    assert run.main(arguments(out, *ONE_CASE)) == 0
    assert run.main(arguments(out, "--only", "plain/forward/96", "--fresh")) == 0
    assert [result["name"] for result in read(out)["results"]] == ["plain/forward/96"]


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_measured_and_goes_on(tmp_path):
    out = tmp_path / "run.json"
    more = ["--only", "*/forward/*", "--seconds", "0.2"]
    command = [sys.executable, "-m", "benchmarks.run", *arguments(out, *more)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not out.exists() or len(read(out)["results"]) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survived = read(out)["results"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    content = read(out)
    assert content["results"][: len(survived)] == survived
    assert len(content["results"]) > len(survived)
    assert len(content["sessions"]) == 2


def test_a_checkout_needs_no_installation(tmp_path):
    """Outside any environment that knows ropewalk, the folder finds it beside itself."""
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
        "import benchmarks, ropewalk.blocks.rotary as found; print(found.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(ROOT / "blocks" / "rotary" / "__init__.py")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 0}, "format"),
        ({"goals": None}, "'goals' must be a list"),
        ({"results": [{"name": "x"}]}, "a result lacks"),
    ],
)
def test_a_file_that_is_not_whole_is_named(change, problem, tmp_path, capsys):
    empty = {"format": 1, "suite": "s", "device": "cpu", "quick": True, "device_name": "n",
             "sessions": [], "results": [], "goals": [], "complete": False}  # fmt: skip
    assert problem_of(empty) is None
    assert problem in str(problem_of(empty | change))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(empty | change))
    with pytest.raises(ResultError, match="no benchmark result"):
        read(broken)
    assert plot.main([str(broken), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_peer_needs_a_figure_or_a_reason():
    base = {"format": 1, "suite": "s", "device": "cpu", "quick": True, "device_name": "n",
            "sessions": [], "goals": [], "complete": False}  # fmt: skip
    result = {"name": "x", "session": 0, "kind": "time", "parameters": {}, "work": {},
              "floor_ms": 1.0}  # fmt: skip
    for peer, right in (({"skipped": "absent"}, True), ({"error": "bad"}, True), ({}, False)):
        content = base | {"results": [result | {"peers": {"p": peer}}]}
        assert (problem_of(content) is None) == right
