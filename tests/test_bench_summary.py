"""bench of policies whose evicted text comes back: their rows tell what the summaries took."""

from __future__ import annotations

import pytest

from pipeline import bench, io
from pipeline.kv import recipe as kv
from pipeline.kv.precision import CacheShape, Precision
from pipeline.reporting.records import Bench
from pipeline.tasks import recall

from .bench_runs import with_bench

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

SHAPE = CacheShape(layers=2, kv_heads=2, key_length=64, value_length=64)
POLICIES = (
    "full",
    "streaming_llm",
    "streaming_summary",
    "streaming_summary_extractive",
    "streaming_summary_none",
)
DEPTH, BUDGET, SLACK = 320, 64, 8
FED = 59


@pytest.fixture(scope="module")
def rows(bench_inputs, params) -> dict[str, dict]:
    """The rows by policy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench_inputs)
        bench.main(with_bench(params, policies=POLICIES, depths=(DEPTH,), repetitions=1), "Q4_0")
        result = io.read_json("eval/bench/Q4_0.json")
    found = Bench.model_validate(result).rows
    assert found[2].summary["made"].value > 0
    assert found[2].timing.summary["share"].value > 0
    return {row["policy"]: row for row in result["rows"]}


def test_rows_tell_of_summaries_where_there_are_any(rows):
    for name, row in rows.items():
        assert ("summary" in row) == bool(kv.read(name).summary)
        assert ("summary" in row["timing"]) == bool(kv.read(name).summary)
        assert list(row["recall"]) == list(recall.KINDS)
        assert all(set(sights) == {"seen"} for sights in row["recall"].values())


def test_summaries_are_counted(rows):
    figures = {
        name: {key: one["value"] for key, one in row["summary"].items()}
        for name, row in rows.items()
        if "summary" in row
    }
    gone = DEPTH + FED - BUDGET
    for name in ("streaming_summary", "streaming_summary_extractive"):
        assert 0 < figures[name]["made"] <= gone / BUDGET
        assert 0 < figures[name]["entries"] <= BUDGET / 4
        assert figures[name]["written"] <= figures[name]["made"] * BUDGET / 4
        assert figures[name]["waiting"] < 2 * (BUDGET + SLACK + 1)
    assert figures["streaming_summary"]["computed"] > gone
    assert figures["streaming_summary"]["kv_bytes_peak"] % Precision("q4_0", "q4_0").kv_bytes(SHAPE, 1) == 0
    assert rows["streaming_summary"]["summary_kv_type"] == "q4_0"
    assert figures["streaming_summary_extractive"]["computed"] == 0
    assert not any(figures["streaming_summary_none"].values())


def test_time_and_work_hold_the_summaries(rows):
    for name in ("streaming_summary", "streaming_summary_extractive"):
        times = {key: one["value"] for key, one in rows[name]["timing"]["summary"].items()}
        assert 0 < times["share"] < 1
        assert times["writing_s"] > 0
        assert times["inserting_s"] > 0
    work = {name: row["flops"]["prefill"]["value"] for name, row in rows.items()}
    assert work["streaming_summary_none"] < work["streaming_llm"]
    assert work["streaming_llm"] < work["streaming_summary_extractive"] < work["streaming_summary"]
    assert rows["streaming_summary_none"]["timing"]["summary"]["share"]["value"] == 0


def test_a_long_conversation_tells_what_summaries_cost_in_the_long_run(rows):
    assert {name for name, row in rows.items() if "conversation" in row} == {
        "streaming_summary",
        "streaming_summary_extractive",
    }
    for name in ("streaming_summary", "streaming_summary_extractive"):
        found = {key: one["value"] for key, one in rows[name]["conversation"].items()}
        assert 7 * DEPTH < found["tokens"] <= 8 * DEPTH
        assert found["made"] == 2, "after 256 tokens and 1,024 more"
        assert 0 < found["share"] < 1
        assert found["retries"] == found["fallbacks"] + (found["failures"] - 2 * found["fallbacks"])


def test_a_summary_stands_within_the_budget_and_in_no_picture(rows):
    for name in ("streaming_summary", "streaming_summary_extractive", "streaming_summary_none"):
        row = rows[name]
        assert max(row["entries_by_layer"]) <= BUDGET + SLACK
        assert row["entries_peak"]["value"] == BUDGET + SLACK + 1
        assert row["kept"][0][0] == 0.4  # 4 sinks of 10 tokens
        assert sum(map(bool, row["kept"][0][1:-7])) == 0
    assert rows["streaming_summary"]["state_bytes"]["value"] > rows["streaming_llm"]["state_bytes"]["value"] == 0
