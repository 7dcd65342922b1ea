"""The file of a run is always whole, belongs to one process and keeps its configuration."""

import json
import os

import pytest

from ropewalk.evals import run_folder
from ropewalk.evals.errors import InputError
from ropewalk.evals.run_file import (
    RunFile,
    check_configuration,
    read_run,
)
from ropewalk.evals.run_folder import check_out, check_run_folder

CONFIGURATION = {"model": "m", "lengths": (1, 2), "variants": {"rope": {}}}


def result(sample="s0", **changes):
    return {"variant": "rope", "task": "t", "length": 1, "sample": sample, "x": 1.5, **changes}


def test_results_come_back_and_are_known_again(tmp_path):
    with RunFile(tmp_path / "deep" / "run", CONFIGURATION) as run:
        run.add([result("s0"), result("s1")])
    with RunFile(tmp_path / "deep" / "run", CONFIGURATION) as run:
        assert run.has(("rope", "t", 1, "s1"))
        assert not run.has(("rope", "t", 2, "s1"))
        run.add([result("s2")])
        run.complete()
    content = read_run(tmp_path / "deep" / "run")
    assert [entry["sample"] for entry in content["results"]] == ["s0", "s1", "s2"]
    assert content["complete"] is True
    assert len(content["sessions"]) == 2
    assert content["sessions"][0]["versions"]["torch"]
    assert content["sessions"][0]["hardware"]["threads"] >= 1


def test_a_session_that_adds_nothing_leaves_the_file_alone(tmp_path):
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result()])
        run.complete()
    before = (tmp_path / "run.json").read_bytes()
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.complete()
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_result_is_never_repeated(tmp_path):
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result()])
        with pytest.raises(ValueError, match="in the run already"):
            run.add([result()])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result("s0")])

        def crash(descriptor):
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="no space"):
            run.add([result("s1")])
    assert [entry["sample"] for entry in read_run(tmp_path)["results"]] == ["s0"]


def test_half_a_partial_file_is_no_obstacle(tmp_path):
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result("s0")])
    (tmp_path / "run.json.partial").write_text('{"format": 1, "resu')
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result("s1")])
    assert len(read_run(tmp_path)["results"]) == 2


def test_two_processes_cannot_write_one_run(tmp_path):
    with (
        RunFile(tmp_path, CONFIGURATION),
        pytest.raises(InputError, match="in use by another process"),
        RunFile(tmp_path, CONFIGURATION),
    ):
        pass
    with RunFile(tmp_path, CONFIGURATION):
        pass


def test_another_configuration_is_refused_and_nothing_is_overwritten(tmp_path):
    with RunFile(tmp_path, CONFIGURATION) as run:
        run.add([result()])
    before = (tmp_path / "run.json").read_bytes()
    other = {**CONFIGURATION, "lengths": (1, 2, 4), "new": 1}
    for attempt in (
        lambda: check_configuration(tmp_path, other),
        RunFile(tmp_path, other).__enter__,
    ):
        with pytest.raises(InputError, match=r"another configuration \(different: lengths, new\)"):
            attempt()
    assert (tmp_path / "run.json").read_bytes() == before
    with RunFile(tmp_path, CONFIGURATION):
        pass  # the refused attempt left no lock behind


@pytest.mark.parametrize("content", ["", "{", "[1]", json.dumps({"format": 99}), "{}"])
def test_a_file_that_is_no_run_is_refused_and_not_overwritten(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json"), RunFile(tmp_path, CONFIGURATION):
        pass
    assert (tmp_path / "run.json").read_text() == content


def test_a_session_that_adds_nothing_leaves_nothing_behind(tmp_path):
    with RunFile(tmp_path / "deep" / "run", CONFIGURATION):
        assert (tmp_path / "deep" / "run" / "run.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_in_between_is_not_taken(tmp_path, monkeypatch):
    lock = run_folder.lock

    def late(opened):
        lock(opened)
        (tmp_path / "run.lock").unlink()

    monkeypatch.setattr(run_folder, "lock", late)
    with pytest.raises(InputError, match="in use"), RunFile(tmp_path, CONFIGURATION):
        pass


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "run.lock").touch()
    (tmp_path / "run.json.partial").touch()
    check_run_folder(tmp_path)
    (tmp_path / "perplexity.png").write_text("mine")
    with pytest.raises(InputError, match=r"not empty \('perplexity.png' is in it\)"):
        check_run_folder(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_without_touching_it(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(InputError, match="is not a folder"):
            check_out(out)
        with pytest.raises(InputError, match="is not a folder"), RunFile(out, CONFIGURATION):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    check_out(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission"):
        check_out(tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        read_run(tmp_path)
