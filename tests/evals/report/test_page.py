"""The page stands alone, and the pictures and tables hold what the run holds."""

import json
import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from ropewalk.evals.report import summarise, terminal_tables, write_report
from ropewalk.evals.report.loss_picture import perplexity_picture
from ropewalk.evals.report.share_pictures import retrieval_picture

VOID = {"meta", "img", "source", "br", "link"}


class Structure(HTMLParser):
    """Checks that tags are balanced, and collects what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    structure = Structure()
    structure.feed(text)
    assert structure.open == []
    return structure


def write(folder, run):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    return write_report(folder)


def test_the_page_needs_nothing_but_itself(telling_run, tmp_path):
    _, written = write(tmp_path, telling_run)
    assert [path.name for path in written] == ["perplexity.png", "passkey.png", "report.html"]
    text = (tmp_path / "report.html").read_text()
    structure = parsed(text)
    assert len(structure.references) == 4
    assert all(place.startswith("data:image/png;base64,") for place in structure.references)
    assert "script" not in structure.tags
    assert "http://" not in text
    assert "https://" not in text
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text


def test_the_page_holds_figures_settings_and_intervals(telling_run, tmp_path):
    write(tmp_path, telling_run)
    text = re.sub(r"data:image[^\"]*", "", (tmp_path / "report.html").read_text())
    for expected in (
        "a&lt;b&gt;",
        "rerope(window=128) + log-n(length=512, clamp=true)",
        "1.450<small>± 0.025</small>",
        "100%<small>72% to 100%</small>",
        "-0.050",
        "score_tokens",
        "&lt;0&gt;.py",
    ):
        assert expected in text, expected
    assert "<0>" not in text


def test_the_same_run_gives_the_same_files(telling_run, tmp_path):
    write(tmp_path / "a", telling_run)
    write(tmp_path / "b", telling_run)
    for name in ("perplexity.png", "passkey.png", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dark", [False, True])
def test_pictures_are_drawn_for_odd_runs(telling_run, dark):
    """One length, one depth, a hole, a loss that is not finite."""
    run = telling_run
    run["results"] = [
        r for r in run["results"] if not (r["variant"] == "rope" and r["length"] > 512)
    ]
    run["results"][0]["nats"] = None
    summary = summarise(run)
    assert perplexity_picture(summary, dark=dark).startswith(b"\x89PNG")
    assert retrieval_picture(summary, dark=dark).startswith(b"\x89PNG")
    run["configuration"]["lengths"] = [512]
    run["results"] = [r for r in run["results"] if r["length"] == 512 and r.get("depth", 0) == 0]
    summary = summarise(run)
    assert perplexity_picture(summary, dark=dark).startswith(b"\x89PNG")
    assert retrieval_picture(summary, dark=dark).startswith(b"\x89PNG")


def test_a_run_of_one_task_has_no_picture_of_the_other(telling_run, tmp_path):
    telling_run["results"] = [r for r in telling_run["results"] if r["task"] == "passkey"]
    _, written = write(tmp_path, telling_run)
    assert [path.name for path in written] == ["passkey.png", "report.html"]
    parsed((tmp_path / "report.html").read_text())


def test_a_run_without_results_has_a_page(telling_run, tmp_path):
    telling_run["results"] = []
    telling_run["sessions"] = []
    telling_run["complete"] = False
    _, written = write(tmp_path, telling_run)
    assert [path.name for path in written] == ["report.html"]
    text = (tmp_path / "report.html").read_text()
    assert "not complete yet" in text
    assert "no results yet" in text


def test_the_terminal_tables_have_a_row_per_variant(telling_run):
    console = Console(width=60, record=True, file=StringIO())
    for table in terminal_tables(summarise(telling_run)):
        console.print(table)
    text = console.export_text()
    assert re.search(r"rerope\+log-n +1\.500 +1\.480 +1\.450", text)
    assert re.search(r"rerope\+log-n +100% +100% +100%", text)
    assert re.search(r"rope +100% +10% +0%", text)
