"""What the report concludes: headline, answer, choices and compared texts follow the numbers."""

from __future__ import annotations

import pytest

from pipeline import io, report
from pipeline.config import Params
from pipeline.metrics.measure import measure
from pipeline.reporting import answers, kv, page, verdict
from pipeline.reporting.headline import headline
from pipeline.reporting.load import load
from tests.report_pages import bend, workspace


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


def test_the_headline_is_short_plain_and_traceable(results):
    report.main(results)
    groups = io.read_json(report.METRICS)
    numbers = {f"{group}.{key}": value for group, inner in groups.items() for key, value in inner.items()}
    assert 0 < len(numbers) <= 12
    assert all(isinstance(value, float) for value in numbers.values())
    merged = io.read_json("eval/quality/merged.json")["metrics"]
    row = io.read_json("eval/bench/Q4_K_M.json")["rows"][7]
    assert (row["policy"], row["depth"]) == ("snapkv", 512)
    assert numbers["quality.bert_f1"] == merged["bert_f1"]["value"]
    assert numbers["quality.bert_f1_gain"] == pytest.approx(0.12, abs=0.01)
    assert numbers["kld.Q4_K_M"] == 0.027
    assert numbers["size_mb.Q4_K_M"] == 5.3
    assert numbers["bench.kv_saving"] == pytest.approx(0.7, abs=0.01)
    assert numbers["bench.tok_s"] == row["timing"]["tokens_per_second"]["value"]


@pytest.mark.parametrize(
    ("shift", "noise", "word"), [(0.05, 0.0, "Yes."), (-0.05, 0.0, "No."), (0.001, 0.3, "Not shown.")]
)
def test_the_answer_follows_the_paired_interval(results, shift, noise, word):
    base = io.read_json("eval/quality/base.json")["per_dialogue"]["bert_f1"]
    gains = [shift + noise * (-1) ** index for index in range(len(base))]
    scores = [score + gain for score, gain in zip(base, gains, strict=True)]
    bend("eval/quality/merged.json", "per_dialogue", "bert_f1", value=scores)
    found = load(results)
    gain = verdict.gain(found)
    assert gain.value == pytest.approx(shift, abs=1e-6)
    assert page.answer(found, gain)[0] == word


def test_choices_follow_their_rules(results):
    names = [choice.name for choice in verdict.choices(load(results))]
    assert names == ["Q8_0", "Q4_K_M", "W4A16", "snapkv 256"]


def test_a_policy_that_forgets_is_not_chosen(results):
    choice = verdict.long_conversation(load(results))
    assert choice.name == "snapkv 256"  # streaming_llm is smaller, and forgets
    assert "recall 88\u00a0% beside 92\u00a0%" in choice.reason
    assert "recall of at least 90\u00a0% of full KV’s when asked after the cut" in choice.rule
    forget("snapkv", sight="unseen", share=0.8)
    assert verdict.long_conversation(load(results)).name is None


def test_entries_in_host_memory_count(results):
    assert verdict.long_conversation(load(results)).name == "snapkv 256"
    bend("eval/bench/Q4_K_M.json", "rows", 7, "host_bytes", value=10**9)
    found = load(results)
    assert verdict.long_conversation(found).name is None
    (section,) = kv.sections(found)
    assert [row[0].text for row in section.front.rows] == ["streaming_llm 256", "full"]


def test_a_row_without_recall_is_not_chosen_where_full_kv_has_it(results):
    bend("eval/bench/Q4_K_M.json", "rows", 7, "recall", value={})
    choice = verdict.long_conversation(load(results))
    assert choice.name is None
    assert choice.reason.startswith("No policy stays that close to full KV")
    report.main(results)


def test_recall_that_full_kv_lacks_too_is_said_to_tell_nothing(results):
    for index in range(4, 8):
        bend("eval/bench/Q4_K_M.json", "rows", index, "recall", value={"pairs": {"seen": measure(0.0, n=4)}})
    assert "which tells nothing" in verdict.long_conversation(load(results)).reason


def test_without_recall_the_rule_is_of_perplexity_alone(results):
    for index in range(4, 8):
        bend("eval/bench/Q4_K_M.json", "rows", index, "recall", value={})
    choice = verdict.long_conversation(load(results))
    assert choice.name == "streaming_llm 256"
    assert "recall" not in choice.rule + choice.reason
    report.main(results)
    assert "| Recall" not in report.MARKDOWN.read_text(encoding="utf-8")
    assert "### Recall" not in report.MARKDOWN.read_text(encoding="utf-8")


def forget(policy: str, sight: str, share: float) -> None:
    """Set a policy's recall at the greatest depth, of every kind of task."""
    rows = io.read_json("eval/bench/Q4_K_M.json")["rows"]
    index = next(index for index, row in enumerate(rows) if row["policy"] == policy and "recall" in row)
    for kind in rows[index]["recall"]:
        bend("eval/bench/Q4_K_M.json", "rows", index, "recall", kind, sight, "value", value=share)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_never_wins(results, bad):
    for cell in ("Q8_0", "Q4_K_M", "W4A16"):
        bend(f"eval/quality/{cell}.json", "metrics", "kld", "value", value=bad)
    bend("eval/bench/Q4_K_M.json", "rows", 7, "quality", "perplexity", "value", value=bad)
    bend("eval/bench/Q4_K_M.json", "rows", 5, "kv_bytes_final", value=bad)
    forget("full", sight="seen", share=0.0)  # nothing to forget: perplexity and bytes alone decide
    bend("eval/bench/Q4_K_M.json", "rows", 6, "kv_bytes_final", value=bad)
    found = load(results)
    assert [choice.name for choice in verdict.choices(found)] == [None, None, None, None]
    assert headline(found)["kld"]["Q4_K_M"] == bad
    report.main(results)
    assert f"| {bad} |" in report.MARKDOWN.read_text(encoding="utf-8")


def test_scores_that_are_not_numbers_show_nothing(results):
    bend("eval/quality/merged.json", "per_dialogue", "bert_f1", 0, value="nan")
    found = load(results)
    assert page.answer(found, verdict.gain(found))[0] == "Not shown."


def test_equal_answers_stand_together_and_differences_are_marked(results):
    bend("eval/quality/Q4_K_M.json", "samples", 0, "answer", value="您好，建议多喝水。")
    bend("eval/quality/merged.json", "samples", 0, "answer", value="您好，建议多休息。")
    bend("eval/quality/Q8_0.json", "samples", 0, "answer", value="您好，建议多休息。")
    question = answers.questions(load(results))[0]
    assert [answer.models for answer in question.answers] == [["base"], ["merged", "Q8_0"], ["Q4_K_M"], ["W4A16"]]
    assert question.answers[2].parts == [("您好，建议多", False), ("喝水", True), ("。", False)]
    assert question.answers[2].text == "您好，建议多喝水。"
