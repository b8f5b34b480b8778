"""The tables that a benchmark may have besides its policies: shown where they were measured, and only there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import report
from pipeline.config import Params
from pipeline.metrics.measure import measure
from tests.report_pages import bend, workspace

BENCH = "eval/bench/Q4_K_M.json"
ASKED = {
    "exact_match": measure(0.75, ci95=(0.301, 0.954), n=4),
    "bert_f1": measure(0.9214, stderr=0.01, n=4),
    "kv_bytes_mean": measure(1_048_576.0),
}
DRAFTED = {
    "policy": "streaming_llm",
    "budget": 256,
    "depth": 512,
    "draft_tokens": 4,
    "acceptance": measure(0.8182),
    "tokens_per_call": measure(3.94),
    "identical": True,
    "identical_single": True,
    "shortfall": measure(0.0),
    "timing": {"ratio_to_full": measure(1.37)},
}


SUMMED = {
    "made": measure(4.0),
    "failures": measure(8.0),
    "fallbacks": measure(4.0),
    "entries": measure(61.0),
    "waiting": measure(17.0),
    "kv_bytes_peak": measure(576_000.0),
}


AMORTISED = {
    "tokens": measure(8123.0),
    "made": measure(4.0),
    "failures": measure(3.0),
    "retries": measure(2.0),
    "fallbacks": measure(1.0),
    "share": measure(0.0876),
}


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


def pages(results) -> tuple[str, str]:
    """Return the report as Markdown and as HTML."""
    report.main(results)
    return tuple(Path(f"eval/report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))


def test_what_was_not_measured_has_no_table(results):
    for page in pages(results):
        assert "conversations at depth" not in page
        assert "Lossless" not in page
        assert "Summaries at" not in page
        assert "Summaries in" not in page


def test_what_summaries_took_and_gave_is_shown(results):
    bend(BENCH, "rows", 6, "summary", value=SUMMED)
    bend(BENCH, "rows", 6, "timing", "summary", value={"share": measure(0.1234)})
    markdown, html = pages(results)
    assert "### Summaries at depth 512" in markdown
    assert re.search(
        r"\| streaming_llm \| +256 \| +4\.0 \| +8\.0 \| +4\.0 \| +61 \| +17 \| +0\.58 \| +12\.3 \|", markdown
    )
    assert "Summaries at depth 512" in html


def test_what_summaries_cost_in_the_long_run_is_stated(results):
    bend(BENCH, "rows", 6, "summary", value=SUMMED)
    bend(BENCH, "rows", 6, "timing", "summary", value={"share": measure(0.1234)})
    bend(BENCH, "rows", 6, "conversation", value=AMORTISED)
    markdown, html = pages(results)
    assert "### Summaries in a conversation of about 8,123 tokens" in markdown
    assert re.search(r"\| streaming_llm \| +256 \| +4 \| +3 \| +2 \| +1 \| +8\.8 \|", markdown)
    assert "of the whole conversation’s time" in html


def test_recall_in_conversations_is_shown_by_policy(results):
    bend(BENCH, "rows", 6, "dialogue_recall", value=ASKED)
    markdown, html = pages(results)
    assert "### Recall in conversations at depth 512" in markdown
    assert re.search(r"\| streaming_llm \| +256 \| +1\.05 \| +75 \[30, 95\] \| +0\.921 ± 0\.010 \|", markdown)
    assert "Recall in conversations at depth 512" in html
    assert "Lossless" not in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"yes +\| +the same"),
        ({"identical": False}, r"no +\|"),
        ({"identical_single": False, "shortfall": measure(0.0013)}, r"yes +\| +parts, gap 0\.0013 logits"),
    ],
)
def test_lossless_decoding_says_whether_the_text_is_the_same(results, changes, words):
    bend(BENCH, "lossless", value=[DRAFTED | changes])
    markdown, html = pages(results)
    assert "### Lossless decoding at depth 512" in markdown
    line = next(line for line in markdown.split("Lossless decoding")[1].splitlines() if "streaming_llm" in line)
    assert re.search(rf"256 \| +4 \| +81\.8 \| +3\.94 \| +1\.37 \| +{words}", line)
    assert "Lossless decoding at depth 512" in html
