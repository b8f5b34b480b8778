"""Published figures: every file fits, agrees with the recipes that quote it, and ours stand beside them as ratios."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline import check, recipes, report
from pipeline.errors import ConfigError
from pipeline.reporting import against, references
from pipeline.reporting.load import load
from tests.conftest import ROOT
from tests.report_pages import Page, workspace
from tests.report_results import POLICIES

FOLDER = ROOT / "recipes/references"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != references.ERRATA)


@pytest.fixture
def published(monkeypatch) -> dict[str, references.Reference]:
    """The published tables of the repository."""
    with monkeypatch.context() as at_root:
        at_root.chdir(ROOT)
        return references.load()


@pytest.fixture
def results(params, tmp_path, monkeypatch):
    """The results of a whole run, in a working directory that holds the published tables."""
    small = workspace(params, tmp_path, monkeypatch)
    shutil.copytree(FOLDER, tmp_path / "recipes/references")
    return load(small)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_names_what_exists(name, published, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = published[name]
    assert set(table.errata) <= {erratum.id for erratum in references.errata()}
    for row in table.rows:
        assert row.policy is None or row.policy in recipes.names("kv")
        assert row.encoding is None or row.encoding in recipes.names("quantize")
    assert {column.ours for column in table.columns} - {None} <= set(against.MEASURES)
    assert table.base is None or table.base.policy


def test_what_the_recipes_quote_stands_in_a_reference():
    held = " ".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    held = {float(number) for number in re.findall(r"\d+\.\d+", held)}
    for path in (ROOT / "recipes/kv").glob("*.yaml"):
        quoted = " ".join(yaml.safe_load(path.read_text(encoding="utf-8")).get("published", ()))
        quoted = re.sub(r"arXiv [\d.]+|-[\d.]+B", "", quoted)
        assert {float(number) for number in re.findall(r"\d+\.\d+", quoted)} <= held, path.name


def test_shares_follow_from_the_mean_entries_of_the_origin(published):
    shares = {row.method: row.share for row in published["origin_pythia"].rows}
    for method, entries in {"Recent-Only 512": 604.9, "Pyramid ≈414": 258.8, "Adaptive ≈256": 364.9}.items():
        assert shares[method] == pytest.approx(entries / 1999, abs=1e-4)
    assert shares["Pyramid ≈829"] == pytest.approx(392.9 / 1999, abs=1e-4)
    assert shares["Fix-L2 1024"] == pytest.approx(1084.9 / 1999, abs=1e-4)


def test_a_row_with_a_value_of_no_column_is_refused(tmp_path, monkeypatch):
    raw = yaml.safe_load((FOLDER / "origin_h2o.yaml").read_text(encoding="utf-8"))
    raw["rows"][1] |= {"values": {"PPLX": 8.4}, "base": True}
    folder = tmp_path / "recipes/references"
    folder.mkdir(parents=True)
    (folder / "bent.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"bent.yaml.*H2O-L2.*PPLX"):
        references.load()


def test_check_reads_the_published_tables(params, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "recipes/references/origin_h2o.yaml").write_text("titel: x\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    problems = list(check.recipes_of(params))
    assert any("origin_h2o.yaml: titel: unknown key; did you mean 'title'" in problem for problem in problems)


def test_ours_are_ratios_to_our_full_row(results, published):
    table = published["origin_pythia"]
    row = next(row for row in table.rows if row.method == "Recent-Only 512")
    ours = against.nearest(results, table, row)
    assert ours.ratios["perplexity"] == pytest.approx(POLICIES["recent_only"][2] / POLICIES["full"][2])
    assert ours.ratios["tpot"] == pytest.approx(POLICIES["recent_only"][4] / POLICIES["full"][4], rel=1e-4)
    assert (ours.name, ours.where) == ("recent_only 256", "depth 512, 25\u00a0% kept")
    assert ours.reason == "another share kept; its first two layers stayed whole"


@pytest.mark.parametrize(
    ("ratio", "shown"), [(1.00475, "1.005"), (0.5, "0.5"), (1.0, "1"), (10.0, "10"), (955.185, "955"), (0, "0")]
)
def test_ratios_are_short_and_not_cut_where_it_counts(ratio, shown):
    assert against.ratio_text(ratio) == shown


def test_the_row_at_the_nearest_share_is_taken(results, published):
    bench = results.bench["Q4_K_M"]
    row = next(one for one in bench.rows if one.policy == "recent_only" and one.depth == 256)
    half = row.model_copy(update={"entries": row.entries.model_copy(update={"value": 128.0}), "budget": 128})
    bench.rows.append(half)
    for method, budget in (("Recent-Only 512", 256), ("Recent-Only 1024", 128)):
        line = next(one for one in published["origin_pythia"].rows if one.method == method)
        assert against.nearest(results, published["origin_pythia"], line).name == f"recent_only {budget}"


def test_an_encoding_stands_beside_the_merged_model(results, published):
    table = published["origin_weights"]
    fp8, w4a8 = (against.nearest(results, table, row) for row in table.rows)
    assert not fp8.ratios
    assert fp8.reason == "not among quantize.encodings of this run"
    own = results.quality | {"W4A8": results.quality["W4A16"]}
    assert w4a8.name == "W4A8"
    shown = against.nearest(type(results)(**(vars(results) | {"quality": own})), table, table.rows[1])
    assert shown.ratios["perplexity"] == pytest.approx(
        own["W4A16"].metrics.perplexity.value / own["merged"].metrics.perplexity.value
    )


def test_what_we_lack_is_said(results, published):
    shown = {row[0].text: row for row in against.table(results, published["published_claims"]).rows}
    assert shown["KIVI (arXiv 2402.02750)"][-1].text.startswith(f"{against.LACKING}; its 2-bit types")
    assert shown["H2O (arXiv 2306.14048)"][-1].text == "not among bench.policies of this run"
    assert shown["StreamingLLM (arXiv 2309.17453)"][-2].text.startswith("× ")


def test_the_report_shows_every_table_and_erratum(results, published):
    report.main(results.params)
    shown = "".join(Page(report.HTML.read_text(encoding="utf-8")).shown)
    markdown = report.MARKDOWN.read_text(encoding="utf-8")
    for table in published.values():
        assert table.title in shown
        assert f"<summary>{table.title}" in markdown
        assert table.differs in shown
    for erratum in references.errata():
        assert erratum.finding in shown
    for lines in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1, lines


def test_without_published_tables_the_report_has_no_such_section(params, tmp_path, monkeypatch):
    small = workspace(params, tmp_path, monkeypatch)
    report.main(small)
    assert "Against the origin" not in Path(report.MARKDOWN).read_text(encoding="utf-8")
