"""The table, and its numbers counted again."""

import json

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import monarch_to_dense
from ropewalk.blocks.monarch.conversion import merge, monarchize


@pytest.fixture
def model(make_model) -> nn.Sequential:
    model = make_model()
    model.append(nn.Embedding(5, 3))
    return model


def test_numbers_are_those_of_the_model(model, inputs) -> None:
    weights = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    whole = sum(p.numel() for p in model.parameters())
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in weights}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].flatten(0, -2))
        )
        for name in weights
    ]
    with torch.no_grad():
        model[:3](inputs)
    for handle in handles:
        handle.remove()
    report = monarchize(
        model, match="*", nblocks=2, rank=2, calibration=lambda _: model[:3](inputs)
    )
    assert [row.name for row in report.skipped] == ["3"]
    for row in report.converted:
        weight, module = weights[row.name], model.get_submodule(row.name)
        factors = module.right.numel() + module.left.numel()
        assert (row.parameters_before, row.parameters_after) == (weight.numel(), factors)
        assert (row.flops_before, row.flops_after) == (2 * weight.numel(), 2 * factors)
        assert (row.out_features, row.in_features) == tuple(weight.shape)
        matrix = monarch_to_dense(module.right, module.left)[: weight.shape[0], : weight.shape[1]]
        weight, difference = weight.detach(), (weight - matrix).detach()
        expected = difference.norm() / weight.norm()
        assert row.relative_error == pytest.approx(float(expected), rel=1e-4)
        x = torch.cat(seen[row.name])
        assert row.calibration_rows == len(x) == 180
        expected = (x @ difference.mT).norm() / (x @ weight.mT).norm()
        assert row.output_error == pytest.approx(float(expected), rel=1e-3)
    assert report.model_parameters_before == whole
    assert report.model_parameters_after == sum(p.numel() for p in model.parameters())
    assert report.parameters_before - report.parameters_after == (
        report.model_parameters_before - report.model_parameters_after
    )
    assert report.compression == report.parameters_before / report.parameters_after
    assert report.flops_after == 2 * report.parameters_after


def test_it_is_a_table_in_text_markdown_and_html(model) -> None:
    report = monarchize(model, match=["*.mlp.*", "3"], nblocks=2, rank=1)
    lines = str(report).splitlines()
    assert lines[0].startswith("layer")
    assert len(lines) == 2 + len(report.layers) + 1
    # Numbers stand under each other: the ends of one column are in one place.
    end = lines[0].index("parameters") + len("parameters")
    assert [line[:end].split()[-1] for line in lines[2:-2]] == ["960"] * 4
    assert all(line[end : end + 2] == "  " for line in lines[2:-2])
    assert "output error" not in lines[0]
    assert lines[-1] == report.summary
    assert repr(report) == str(report)
    assert report.summary.startswith("4 of 5 layers converted: 3,840 → 512 parameters (7.50")
    markdown = report.to_markdown().splitlines()
    assert markdown[1].startswith("| --- |")
    assert {line.count("|") for line in markdown[:7]} == {markdown[0].count("|")}
    html = report._repr_html_()
    assert html.count("<tr>") == 6
    assert "skipped: a parameter of Embedding" in html
    read = json.loads(json.dumps(report.to_dict()))
    assert read["layers"][0]["nblocks"] == [2, 2]
    assert read["parameters_after"] == 512
    assert read["layers"][-1]["skipped"].startswith("a parameter of Embedding")


def test_names_are_escaped_in_html_and_markdown() -> None:
    model = nn.ModuleDict({"a<b>|c": nn.Linear(4, 4)})
    report = monarchize(model, match="*", nblocks=2, rank=1)
    assert "a&lt;b&gt;|c" in report._repr_html_()
    assert "a<b>\\|c" in report.to_markdown()


def test_where_nothing_was_converted_it_says_so() -> None:
    report = monarchize(nn.ModuleList([nn.Embedding(5, 3)]), match="*", nblocks=2, rank=1)
    assert report.summary == "0 of 1 layers converted; the whole model 15 → 15 parameters"
    assert report.compression == 1


def test_which_error_counts_is_said_where_there_are_two(make_model, inputs) -> None:
    plain = monarchize(make_model(), match="*.mlp.*", nblocks=2, rank=1)
    assert "weight error" in str(plain).splitlines()[0]
    assert plain.footnote is None
    report = monarchize(make_model(), match="*.mlp.*", nblocks=2, rank=1, calibration=[inputs])
    head, *_, footnote, summary = str(report).splitlines()
    assert head.index("output error") < head.index("weight error")
    assert "output error is what counts" in footnote
    assert "max_relative_error" in footnote
    assert summary == report.summary
    for text in (report.to_markdown(), report._repr_html_()):
        assert footnote in text
        assert summary in text


def test_merging_is_said_to_take_more(make_model) -> None:
    model = make_model()
    monarchize(model, match="*.mlp.*", nblocks=2, rank=1)
    report = merge(model)
    assert "512 → 3,840 parameters (7.50 times more)" in report.summary
    assert "fewer" not in str(report)
    lines = str(report).splitlines()
    assert " more " in lines[0]
    assert all("7.50×" in line for line in lines[2:-1])


def test_a_subclass_is_said_to_merge_back_as_a_linear_layer() -> None:
    class Projection(nn.Linear):
        """A name of its own, and nothing else."""

    model = nn.Sequential(Projection(16, 16), nn.Linear(16, 16))
    rows = monarchize(model, match="*", nblocks=2, rank=1).layers
    assert [row.note for row in rows] == ["merges back as Linear, no longer Projection", None]
    merge(model)
    assert type(model[0]) is nn.Linear
