"""The report's pages: golden Markdown, HTML that loads nothing, hostile text inert."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline import io, report
from pipeline.config import Params
from pipeline.reporting import page, text
from tests.conftest import ROOT
from tests.report_pages import Page, bend, workspace
from tests.report_results import speed

GOLDEN = Path(__file__).parent / "golden" / "report.md"
HOSTILE = "\u202e<script>alert(1)</script>|a|`b`\x00![x](https://evil.example/x.png)\n# h\nwww.evil.example\ud800"


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


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


def test_host_memory_has_a_column_where_there_is_any(results):
    report.main(results)
    assert "Host, MB" not in Path("eval/report.md").read_text(encoding="utf-8")
    bend("eval/bench/Q4_K_M.json", "rows", 7, "host_bytes", value=1_234_567)
    report.main(results)
    lines = Path("eval/report.md").read_text(encoding="utf-8").splitlines()
    assert sum("Host, MB ↓" in line for line in lines) == 1, "rows of one depth alone have some"
    table = lines[next(at for at, line in enumerate(lines) if "Host, MB ↓" in line) :][:6]
    column = [cell.strip() for cell in table[0].split("|")].index("Host, MB ↓")
    shown = [line.split("|")[column].strip() for line in table[2:]]
    assert sorted(shown) == ["1.23", "–", "–", "–"]


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
    if field == "answer":
        bend("eval/bench/Q4_K_M.json", "answers", 1, "answers", 0, field, value=HOSTILE)
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


def test_speed_is_claimed_only_where_it_was_measured(results):
    report.main(results)
    scores = report.MARKDOWN.read_text(encoding="utf-8").split("## What does each encoding cost?")[1].split("##")[0]
    speed = {cells[1].strip(" →"): cells[-2].strip() for line in scores.splitlines() if (cells := line.split("|"))[1:]}
    assert speed["W4A16"] == "– simulated on CPU"
    assert speed["Q8_0"] == "1,300"
    assert speed["Q4_K_M"] == "1,400 one stream 287"  # at the smallest depth


def test_the_speed_benchmark_is_shown_where_it_was_run(results):
    report.main(results)
    assert "### Speed at a real model" not in Path("eval/report.md").read_text(encoding="utf-8")
    io.write_json("eval/bench/speed.json", speed())
    report.main(results)
    markdown, html = (Path(f"eval/report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    line = next(line for line in markdown.splitlines() if "8,192" in line and "snapkv" in line)
    assert re.findall(r"[^| ]+", line) == ["Q4_0", "8,192", "snapkv", "off", "58.7", "29.5", "3.32"]
    assert re.search(r"step of h2o_online \| +19\.500 \| +12\.00 \| +no", markdown)
    assert "Shape-random-Q4_0.gguf" in html


def test_an_answer_of_white_space_is_named_not_shown(results):
    bend("eval/quality/base.json", "samples", 0, "answer", value="\n" * 64)
    report.main(results)
    assert "no visible text" in report.HTML.read_text(encoding="utf-8")
    assert "| base | no visible text |" in report.MARKDOWN.read_text(encoding="utf-8")


def test_answers_under_policies_are_marked_where_they_differ_from_full_kv(results):
    report.main(results)
    section = report.HTML.read_text(encoding="utf-8").split('id="answers"')[1].split("</section>")[0]
    first = section.split("Q4_K_M under KV policies")[1].split("</article>")[0]
    heads = re.findall(r"<header>(.*?)</header>", first)
    assert heads == [
        "full <small>96 entries kept, none evicted</small>",
        "streaming_llm 48 <small>56 entries kept, 40 evicted</small>",
        "snapkv 48 <small>56 entries kept, 40 evicted; as under full KV</small>",
    ]
    assert re.findall(r"<mark>(.*?)</mark>", first) == ["，忌辛辣"]
    assert first.count('<p lang="zh-Hans">') == 3


def test_an_encoding_is_compared_with_itself_under_full_kv(results):
    for index in range(3):
        bend("eval/bench/Q4_K_M.json", "answers", index, "answers", 0, "answer", value="多喝水。")
    report.main(results)
    first = report.HTML.read_text(encoding="utf-8").split("Q4_K_M under KV policies")[1].split("</article>")[0]
    assert "<mark>" not in first
    assert first.count("as under full KV") == 2


def test_a_benchmark_without_answers_shows_none(results):
    bend("eval/bench/Q4_K_M.json", "answers", value=[])
    report.main(results)
    for path in (report.MARKDOWN, report.HTML):
        assert "under KV policies" not in path.read_text(encoding="utf-8").split("What do the answers look like?")[1]


def test_what_to_take_for_how_much_memory_is_the_front(results):
    report.main(results)
    section = Path("eval/report.md").read_text(encoding="utf-8").split("## Which KV policy suits which memory?")[1]
    lines = [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    taken = [line for line in lines[2:] if len(line) == len(lines[0])][:3]
    assert [line[0].strip("→ ") for line in taken] == ["streaming_llm 256", "snapkv 256", "full"]
    assert [line[2] for line in taken] == ["25", "30", "100"]
    assert sorted(line[1] for line in taken) == [line[1] for line in taken]


def test_data_from_the_hub_is_named_with_its_revision(results):
    bend("data/chat/summary.json", "source", "repo", value="some/dialogues")
    bend("data/chat/summary.json", "source", "revision", value="0123abcd")
    report.main(results)
    for path in (report.MARKDOWN, report.HTML):
        assert "(some/dialogues at 0123abcd)" in path.read_text(encoding="utf-8")
