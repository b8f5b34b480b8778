"""The report: golden Markdown, hostile text inert, missing and broken JSON named, verdicts that follow the numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline import io, report
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting import answers, figures, page, svg, text, verdict
from pipeline.reporting.headline import headline
from pipeline.reporting.load import load
from pipeline.reporting.records import Measure
from pipeline.reporting.table import measured, number, plain
from tests import report_results
from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "golden" / "report.md"
HOSTILE = "\u202e<script>alert(1)</script>|a|`b`\x00![x](https://evil.example/x.png)\n# h\nwww.evil.example\ud800"


@pytest.fixture
def small(params) -> Params:
    """Params with few cells, so that the golden report is short and does not follow params.yaml."""
    quantize = params.quantize.model_copy(update={"encodings": ("Q8_0", "Q4_K_M", "W4A16"), "finetune": "MedChatZH"})
    bench = params.bench.model_copy(
        update={
            "encodings": ("Q4_K_M",),
            "policies": ("full", "recent_only", "streaming_llm"),
            "depths": (512,),
            "decode_tokens": 64,
        }
    )
    evaluate = params.evaluate.model_copy(update={"max_new_tokens": 192})
    return params.model_copy(update={"model": "nano", "quantize": quantize, "evaluate": evaluate, "bench": bench})


@pytest.fixture
def results(small, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    monkeypatch.chdir(tmp_path)
    report_results.write(tmp_path, small)
    return small


def bend(name: str, *keys: str | int, value: object) -> None:
    """Set one value inside a JSON file."""
    document = json.loads(Path(name).read_text(encoding="utf-8"))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    Path(name).write_text(json.dumps(document), encoding="utf-8")


class Page(HTMLParser):
    """What a page would load or run, and the text it shows."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.loads, self.shown, self.lang = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        self.lang += [value for name, value in attrs if name == "lang"]

    def handle_data(self, data):
        self.shown.append(data)


def test_markdown_is_the_golden_one(results):
    report.main(results)
    body = Path("eval/report.md").read_text(encoding="utf-8").split("<details><summary>Parameters")[0]
    assert body == GOLDEN.read_text(encoding="utf-8")


def test_markdown_tables_are_whole(results):
    report.main(results)
    markdown = Path("eval/report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) > 10
    for table in tables:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_html_loads_nothing(results):
    report.main(results)
    shown = Page(Path("eval/report.html").read_text(encoding="utf-8"))
    assert shown.loads
    assert all(target.startswith("#") for target in shown.loads)
    assert not {"img", "link", "iframe", "object", "embed"} & set(shown.tags)
    assert shown.tags.count("script") == 1
    assert "zh-Hans" in shown.lang
    assert "url(" not in page.HERE.joinpath("page.css").read_text(encoding="utf-8")


def test_no_model_library_is_imported():
    heavy = "{'torch', 'transformers', 'llama_cpp', 'datasets', 'evaluate', 'bert_score', 'dvc', 'pandas'}"
    program = f"import sys, pipeline.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_same_results_same_bytes(results):
    report.main(results)
    first = {path: path.read_bytes() for path in (report.HTML, report.MARKDOWN, report.METRICS)}
    report.main(results)
    assert first == {path: path.read_bytes() for path in first}


@pytest.mark.parametrize("field", ["prompt", "reference", "answer"])
def test_hostile_text_is_inert(results, field):
    for cell in ("base", "merged", "Q8_0", "Q4_K_M", "W4A16"):
        bend(f"eval/quality/{cell}.json", "samples", 0, field, value=HOSTILE)
    report.main(results)
    shown = Page(Path("eval/report.html").read_text(encoding="utf-8"))
    assert shown.tags.count("script") == 1
    assert "img" not in shown.tags
    visible = "".join(shown.shown)
    assert "<script>alert(1)</script>" in visible
    assert "⟨U+202E⟩" in visible
    assert "\u202e" not in visible
    rendered = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(report.MARKDOWN.read_text(encoding="utf-8"))
    )
    assert {"script", "img", "a"}.isdisjoint(Page(rendered).tags)
    assert "\u202e" not in rendered
    assert "⟨U+D800⟩" in rendered


def test_hostile_names_are_inert(results):
    bend("data/chat/summary.json", "source", "name", value="</title><script>x</script>")
    bend("eval/bench/Q4_K_M.json", "machine", "cpu", value='"><img src=x>')
    report.main(results)
    shown = Page(Path("eval/report.html").read_text(encoding="utf-8"))
    assert shown.tags.count("script") == 1
    assert "img" not in shown.tags


@given(st.text())
def test_inert_text_has_no_hidden_character(value):
    shown = text.inert(value)
    assert text.inert(shown) == shown
    shown.encode("utf-8")


@given(st.text(alphabet=st.sampled_from("a的<>|`*_[](){}!#~$&\\\n\r\t:/.-1 "), max_size=40))
def test_markdown_text_stays_in_its_cell(value):
    line = f"| a | {text.markdown(value)} |\n|---|---|\n| b | c |\n"
    rendered = Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(line))
    assert set(rendered.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert rendered.tags.count("th") == 2


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
    bend("eval/bench/Q4_K_M.json", "rows", 1, "policy", value="unknown")
    with pytest.raises(UserError) as caught:
        report.main(results)
    first, second = caught.value.problems
    assert first.startswith("eval/quality/Q8_0.json: not about the dialogues that merged.json is about")
    assert first.endswith("run `dvc repro evaluate-quantized@Q8_0`")
    assert second == "eval/bench/Q4_K_M.json: no row for policy recent_only at depth 512; run `dvc repro bench@Q4_K_M`"


def test_a_stale_cell_beside_the_named_ones_is_ignored(results):
    io.write_json("eval/quality/Q2_K.json", {"cell": "Q2_K"})
    report.main(results)
    assert "Q2_K" not in report.MARKDOWN.read_text(encoding="utf-8")


def test_the_headline_is_short_plain_and_traceable(results):
    report.main(results)
    groups = io.read_json(report.METRICS)
    numbers = {f"{group}.{key}": value for group, inner in groups.items() for key, value in inner.items()}
    assert 0 < len(numbers) <= 12
    assert all(isinstance(value, float) for value in numbers.values())
    merged = io.read_json("eval/quality/merged.json")["metrics"]
    row = io.read_json("eval/bench/Q4_K_M.json")["rows"][2]
    assert row["policy"] == "streaming_llm"
    assert numbers["quality.bert_f1"] == merged["bert_f1"]["value"]
    assert numbers["quality.bert_f1_gain"] == pytest.approx(0.12, abs=0.01)
    assert numbers["kld.Q4_K_M"] == 0.027
    assert numbers["size_mb.Q4_K_M"] == 5.3
    assert numbers["bench.kv_saving"] == pytest.approx(0.75)
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
    assert names == ["Q8_0", "Q4_K_M", "W4A16", "streaming_llm 256"]


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_never_wins(results, bad):
    for cell in ("Q8_0", "Q4_K_M", "W4A16"):
        bend(f"eval/quality/{cell}.json", "metrics", "kld", "value", value=bad)
    bend("eval/bench/Q4_K_M.json", "rows", 2, "quality", "perplexity", "value", value=bad)
    bend("eval/bench/Q4_K_M.json", "rows", 1, "kv_bytes_final", value=bad)
    found = load(results)
    assert [choice.name for choice in verdict.choices(found)] == [None, None, None, None]
    assert headline(found)["kld"]["Q4_K_M"] == bad
    report.main(results)
    assert f"| {bad} |" in report.MARKDOWN.read_text(encoding="utf-8")


def test_scores_that_are_not_numbers_show_nothing(results):
    bend("eval/quality/merged.json", "per_dialogue", "bert_f1", 0, value="nan")
    found = load(results)
    assert page.answer(found, verdict.gain(found))[0] == "Not shown."


def test_speed_is_claimed_only_where_it_was_measured(results):
    report.main(results)
    scores = report.MARKDOWN.read_text(encoding="utf-8").split("## What does each encoding cost?")[1].split("##")[0]
    speed = {cells[1].strip(" →"): cells[-2].strip() for line in scores.splitlines() if (cells := line.split("|"))[1:]}
    assert speed["W4A16"] == "– simulated on CPU"
    assert speed["Q8_0"] == "– not benched"
    assert speed["Q4_K_M"].startswith("270.")


def test_equal_answers_stand_together_and_differences_are_marked(results):
    bend("eval/quality/Q4_K_M.json", "samples", 0, "answer", value="您好，建议多喝水。")
    bend("eval/quality/merged.json", "samples", 0, "answer", value="您好，建议多休息。")
    bend("eval/quality/Q8_0.json", "samples", 0, "answer", value="您好，建议多休息。")
    question = answers.questions(load(results))[0]
    assert [answer.models for answer in question.answers] == [["base"], ["merged", "Q8_0"], ["Q4_K_M"], ["W4A16"]]
    assert question.answers[2].parts == [("您好，建议多", False), ("喝水", True), ("。", False)]
    assert question.answers[2].text == "您好，建议多喝水。"


def test_an_answer_of_white_space_is_named_not_shown(results):
    bend("eval/quality/base.json", "samples", 0, "answer", value="\n" * 64)
    report.main(results)
    assert "no visible text" in report.HTML.read_text(encoding="utf-8")
    assert "| base | no visible text |" in report.MARKDOWN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "digits", "signed", "shown"),
    [
        (1234.5, 1, False, "1,234.5"),
        (-0.001, 2, True, "0.00"),
        (-1.5, 1, True, "−1.5"),
        (1.5, 1, True, "+1.5"),
    ],
)
def test_plain_numbers(value, digits, signed, shown):
    assert plain(value, digits, signed) == shown


def test_numbers_that_round_to_nothing_say_so():
    assert number(0.00001, 4).text == "<0.0001"
    assert number(0.0, 4).text == "0.0000"
    assert number(float("nan")).sort is None
    assert measured(Measure(value=0.1, stderr=0.000002), 4).detail == "± 2e-06"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_span_the_data(low, span):
    found = svg.ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-6 * span + 1e-9 * abs(low)
    assert found[-1] >= low + span - 1e-6 * span - 1e-9 * abs(low)


def test_figures_leave_out_what_is_not_finite():
    nan = float("nan")
    points = [figures.Point("a<b", 1, 2), figures.Point("bad", 1, nan)]
    drawn = figures.scatter("t", points, "x", "y") + figures.bars(
        "t", [figures.Bar("bad", nan), figures.Bar("c", 1)], "ms"
    )
    assert "a&lt;b" in drawn
    assert "bad" not in drawn
    assert "nan" not in drawn
    assert "nan" not in figures.curves("t", [figures.Series("s", [(0, nan), (1, 2.0)])], "x", "y")
    assert figures.scatter("t", [], "x", "y")


def test_bars_start_at_zero_and_keep_their_proportions():
    drawn = figures.bars("t", [figures.Bar("a", 2.0), figures.Bar("b", 1.0)], "ms")
    starts = {float(x) for x in re.findall(r'<rect x="([\d.]+)"', drawn)}
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    assert len(starts) == 1
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
