"""What DVC draws and prints: plots name files and fields that exist, headline numbers are few, short and directed."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from pipeline import io, report
from pipeline.reporting import plots
from pipeline.reporting.headline import headline, numbers
from pipeline.reporting.load import load
from tests.conftest import ROOT
from tests.report_pages import bend, workspace

BUILT_IN = {"linear", "simple", "smooth", "scatter", "bar_horizontal"}
PLOTS = {name: plot for one in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"] for name, plot in one.items()}


@pytest.fixture
def params_of_run(params, tmp_path, monkeypatch):
    """Params of a whole run, whose JSON lies in the working directory."""
    return workspace(params, tmp_path, monkeypatch)


def fields(name: str) -> set[str]:
    """Return the fields that every row of a plot's file has."""
    if name.endswith(".tsv"):
        with open(name, encoding="utf-8") as lines:
            return set(next(lines).split())
    return set.intersection(*(set(row) for row in io.read_json(name)))


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_draws_fields_that_its_file_has(name, params_of_run):
    report.main(params_of_run)
    plot = PLOTS[name]
    axes = [axis if isinstance(axis, dict) else dict.fromkeys(plot["y"], axis) for axis in (plot["x"], plot["y"])]
    for axis in axes:
        for file, field in axis.items():
            assert field in fields(file)
    assert plot["template"] in BUILT_IN or (ROOT / f".dvc/plots/{plot['template']}.json").is_file()
    assert "better" in plot["title"]


@pytest.mark.parametrize("path", sorted((ROOT / ".dvc/plots").glob("*.json")), ids=lambda path: path.stem)
def test_a_template_has_places_for_data_axes_and_revisions(path):
    text = path.read_text(encoding="utf-8")
    json.loads(text)
    for anchor in ("DATA", "TITLE", "X", "Y", "X_LABEL", "Y_LABEL", "COLOR"):
        assert f"<DVC_METRIC_{anchor}>" in text


def test_rows_are_what_was_measured(params_of_run):
    bend("eval/quality/Q8_0.json", "metrics", "perplexity", "value", value="inf")
    rows = plots.tidy(load(params_of_run))
    assert [row["encoding"] for row in rows["encodings"]] == list(params_of_run.quantize.encodings)
    first = rows["encodings"][0]
    assert first["size_mb"] == 8.7
    assert "ppl" not in first
    assert {row["policy"]: row["tpot_ms"] for row in rows["policies"]}["full"] == pytest.approx(
        4.10 * (0.8 + 512 / 5000)
    )


def test_headline_numbers_are_few_short_and_directed(params_of_run):
    found = numbers(load(params_of_run))
    assert len(found) <= 12
    assert all(len(name) <= 20 and measure.better in ("lower", "higher") for name, measure in found.items())
    assert {f"{group}.{key}" for group, keys in headline(load(params_of_run)).items() for key in keys} == set(found)


def test_the_readme_says_which_side_is_better(params_of_run):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- headline -->\n(.*?)<!-- /headline -->", readme, flags=re.DOTALL)[1]
    said = {
        better: re.findall(r"`([a-z].*?)`", line) for better, line in re.findall(r"\| (lower|higher) \|(.*)", block)
    }
    found = numbers(load(params_of_run))
    for better, names in said.items():
        assert names == [name for name, measure in found.items() if measure.better == better]
