"""What the report reads: missing, broken and contradicting JSON is named with the stage that makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import io, report
from pipeline.config import Params
from pipeline.errors import UserError
from tests.report_pages import bend, workspace


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


def test_every_missing_file_is_named_with_its_stage(results):
    for name in ("eval/quality/Q4_K_M.json", "eval/quality/base.json", "eval/bench/Q4_K_M.json", "eval/merge.json"):
        Path(name).unlink()
    Path("eval/train/plots/metrics/loss.tsv").unlink()
    Path("eval/timings/quantize@W4A16.json").unlink()
    with pytest.raises(UserError) as caught:
        report.main(results)
    assert list(caught.value.problems) == [
        "eval/train/plots/metrics/loss.tsv: missing; run `dvc repro train`",
        "eval/merge.json: missing; run `dvc repro merge`",
        "eval/quality/base.json: missing; run `dvc repro evaluate@base`",
        "eval/quality/Q4_K_M.json: missing; run `dvc repro evaluate-quantized@Q4_K_M`",
        "eval/bench/Q4_K_M.json: missing; run `dvc repro bench@Q4_K_M`",
        "eval/timings/quantize@W4A16.json: missing; run `dvc repro quantize@W4A16`",
    ]
    assert not report.HTML.exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("eval/merge.json", "{", "not readable as JSON"),
        ("eval/merge.json", "[]", "(whole file)"),
        ("eval/merge.json", '{"kld": {"value": 0}}', "in_memory: field required"),
        ("eval/quality/Q8_0.json", '{"cell": "Q8_0"}', "metrics: field required"),
        ("eval/quantize/Q8_0.json", '{"encoding": 3}', "encoding: input should be a valid string, got '3'"),
        (
            "eval/timings/train.json",
            '{"seconds": "soon", "peak_rss_bytes": 1}',
            "seconds: input should be a valid number",
        ),
        ("eval/train/plots/metrics/loss.tsv", "step\tother\n1\t2\n", "not a table of step and loss"),
    ],
)
def test_a_malformed_file_is_explained(results, name, content, problem):
    Path(name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        report.main(results)
    assert problem in str(caught.value)
    assert "run `dvc repro" in str(caught.value)


def test_cells_that_do_not_fit_together_are_named(results):
    bend("eval/quality/Q8_0.json", "per_dialogue", "ids", 0, value="another")
    bend("eval/bench/Q4_K_M.json", "rows", 5, "policy", value="unknown")
    with pytest.raises(UserError) as caught:
        report.main(results)
    first, second = caught.value.problems
    assert first.startswith("eval/quality/Q8_0.json: not about the dialogues that merged.json is about")
    assert first.endswith("run `dvc repro evaluate-quantized@Q8_0`")
    assert second == "eval/bench/Q4_K_M.json: no row for policy recent_only at depth 512; run `dvc repro bench@Q4_K_M`"


def test_answers_under_policies_to_other_samples_are_named(results):
    bend("eval/bench/Q4_K_M.json", "answers", 1, "answers", 0, "id", value="another")
    with pytest.raises(UserError, match=r"answers to other samples than merged\.json's; run `dvc repro bench@Q4_K_M`"):
        report.main(results)


def test_a_stale_cell_beside_the_named_ones_is_ignored(results):
    io.write_json("eval/quality/Q2_K.json", {"cell": "Q2_K"})
    report.main(results)
    assert "Q2_K" not in report.MARKDOWN.read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_shown_and_break_no_figure(results, bad):
    for index in (5, 7):
        for keys in (("kv_bytes_final",), ("kv_bytes_peak",), ("entries",)):
            bend("eval/bench/Q4_K_M.json", "rows", index, *keys, value=bad)
        for keys in (
            ("quality", "kld"),
            ("timing", "ttft_s"),
            ("timing", "tpot_ms_median"),
            ("timing", "ratio_to_full"),
        ):
            bend(
                "eval/bench/Q4_K_M.json", "rows", index, *keys, value={"value": bad, "stderr": bad, "ci95": [bad, bad]}
            )
        bend("eval/bench/Q4_K_M.json", "rows", index, "kept", 0, 0, value=bad)
    bend("eval/train/summary.json", "eval_loss", "best", value=bad)
    report.main(results)
    html = report.HTML.read_text(encoding="utf-8")
    assert bad in re.findall(r"<td[^>]*>([^<]+)<", html)
    drawn = re.findall(r'(?: d| x| y| x1| x2| width| height| transform| points)="([^"]*)"', html)
    assert len(drawn) > 50
    assert not [shape for shape in drawn if "nan" in shape or "inf" in shape]


def test_a_benchmark_of_an_older_version_has_no_pictures_and_no_recall(results):
    rows = io.read_json("eval/bench/Q4_K_M.json")
    for row in rows["rows"]:
        row.pop("kept")
        row.pop("recall", None)
    del rows["answers"]
    io.write_json("eval/bench/Q4_K_M.json", rows)
    report.main(results)
    html = report.HTML.read_text(encoding="utf-8")
    assert 'class="kept"' not in html
    assert "Recall over KV memory" not in html
    assert html.count('class="card"') == 4
