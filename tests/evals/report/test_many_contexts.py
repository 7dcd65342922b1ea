"""The report of pass keys in many contexts: table, picture, page and sentence."""

import json
import re
from dataclasses import replace
from io import BytesIO, StringIO

import pytest
from matplotlib.image import imread
from rich.console import Console

from ropewalk.evals.report import conclusion, summarise, terminal_tables, write_report
from ropewalk.evals.report.many_contexts import READERS
from ropewalk.evals.report.share_pictures import contexts_picture, retrieval_picture

COUNTS = (1, 4, 16)
TRIALS = 10


@pytest.fixture
def contexts_run(made_up_run):
    """Makes a run from variant → reader → the share found at each number of contexts."""

    def make(shares):
        run = made_up_run()
        for variant, by_reader in shares.items():
            for reader, of_counts in by_reader.items():
                for count, share in zip(COUNTS, of_counts, strict=False):
                    run["results"] += [
                        {
                            "variant": variant,
                            "task": "nbce",
                            "length": 384 * count,
                            "sample": f"depth 0 trial {trial} {reader}",
                            "contexts": count,
                            "depth": 0.0,
                            "correct": {reader: trial < round(TRIALS * share)},
                            "written": {reader: "12345"},
                        }
                        for trial in range(TRIALS)
                    ]
        run["configuration"] |= {
            "variants": {variant: {} for variant in shares},
            "parallel_windows": ["rope"],
            "tasks": {
                "nbce": {
                    "contexts": list(COUNTS),
                    "context_length": 384,
                    "depths": [0.0],
                    "trials": TRIALS,
                }
            },
        }
        return run

    return make


@pytest.fixture
def telling(contexts_run):
    return contexts_run(
        {
            "rope": {
                "min_entropy": (1.0, 1.0, 0.9),
                "mean": (1.0, 0.5, 0.0),
                "concatenation": (1.0, 0.2, 0.0),
                "parallel_windows": (1.0, 1.0, 0.4),
            },
            "rerope": {"min_entropy": (1.0, 1.0, 1.0), "concatenation": (1.0, 1.0, 0.8)},
        }
    )


def test_shares_have_wilson_intervals(telling):
    contexts = summarise(telling).contexts
    assert contexts is not None
    cell = contexts.shares["rope", "concatenation", 4]
    assert (cell.value, cell.count) == (0.2, TRIALS)
    assert (cell.low, cell.high) == pytest.approx((0.0567, 0.5098), abs=1e-3)
    assert contexts.best(16) == 1.0
    assert contexts.best(32) is None


def test_the_conclusion_sets_nbce_against_the_concatenation(telling, contexts_run):
    assert conclusion(summarise(telling)) == (
        "In 16 contexts of 384 tokens rope finds 90% of the pass keys by NBCE with least entropy "
        "and 0% in their concatenation (rerope 80%)."
    )
    alone = {"min_entropy": (1.0,), "concatenation": (1.0,)}
    assert conclusion(summarise(contexts_run({"rope": alone}))) == (
        "This run allows no conclusion."
    )
    both = {"min_entropy": (1.0, 1.0, 1.0), "concatenation": (1.0, 0.5, 0.0)}
    names = ("rope", "a", "b", "c", "d")
    many = conclusion(summarise(contexts_run(dict.fromkeys(names, both))))
    assert many.endswith("in their concatenation (4 others 0% to 0%).")


def test_cells_that_are_not_whole_are_no_conclusion(telling):
    telling["results"] = telling["results"][:-1]
    telling["complete"] = False
    text = conclusion(summarise(telling))
    assert "rerope" not in text
    planned = TRIALS * len(COUNTS) * (2 * 2 + 1)
    assert text.endswith(f"Not complete: {len(telling['results'])} of {planned} samples.")


def test_the_table_has_a_row_per_variant_and_reader(telling):
    console = Console(width=90, record=True, file=StringIO())
    for table in terminal_tables(summarise(telling)):
        console.print(table)
    text = console.export_text()
    assert "Pass keys found in n contexts of 384 tokens" in text
    assert re.search(r"rope +NBCE, least entropy +100% +100% +90%", text)
    assert re.search(r"\n +parallel windows +100% +100% +40%", text)
    assert re.search(r"rerope +NBCE, least entropy +100% +100% +100%", text)
    assert re.search(r"\n +concatenation +100% +100% +80%", text)


def test_the_page_and_the_picture(telling, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(telling))
    _, written = write_report(tmp_path)
    assert [path.name for path in written] == ["nbce.png", "report.html"]
    text = re.sub(r"data:image[^\"]*", "", (tmp_path / "report.html").read_text())
    assert "<h1>a&lt;b&gt; in 16 contexts of 384 tokens</h1>" in text
    assert "· 2 variants ·" in text
    assert "over 1 depth × 10 trials, with" in text
    assert "Many contexts" in text
    assert "90%<small>60% to 98%</small>" in text
    assert "<td>parallel windows</td>" in text
    assert "Loss" not in text.split("Configuration")[0]


@pytest.mark.parametrize("dark", [False, True])
def test_pictures_are_drawn_with_holes(contexts_run, dark):
    one = summarise(contexts_run({"rope": {"min_entropy": (1.0,)}}))
    assert contexts_picture(one, dark=dark).startswith(b"\x89PNG")
    every = dict.fromkeys(READERS, (1.0, 0.5, 0.0))
    four = summarise(contexts_run(dict.fromkeys("abcd", every)))
    assert contexts_picture(four, dark=dark).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["default", "one/long-name-of-a-model-" + 60 * "x"])
def test_titles_fit_into_narrow_pictures(contexts_run, telling_run, name):
    contexts = summarise(contexts_run({"rope": {"min_entropy": (1.0,)}}))
    keys = summarise(telling_run)
    keys = replace(keys, variants=keys.variants[:1], lengths=keys.lengths[:2])
    for draw, summary in ((contexts_picture, contexts), (retrieval_picture, keys)):
        named = replace(summary, configuration={**summary.configuration, "model": name})
        pixels = imread(BytesIO(draw(named)))
        assert (pixels[:, -3:] == pixels[0, -1]).all()


def test_a_run_without_the_task_has_no_such_picture(telling_run):
    with pytest.raises(ValueError, match="with the task nbce"):
        contexts_picture(summarise(telling_run))
