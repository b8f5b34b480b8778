"""compare: two revisions or experiments on one page, from Git alone; what it cannot read, it names."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as cli
from pipeline import compare, io, revisions
from pipeline.errors import UserError
from pipeline.reporting import comparison
from tests.report_pages import Page, bend, workspace

PAGE = Path("compare.html")


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit(message: str) -> str:
    git("add", "params.yaml", "eval")
    git("commit", "--quiet", "--message", message)
    return git("rev-parse", "HEAD")


def write_params(params, **changed) -> None:
    raw = params.model_dump(mode="json")
    for name, value in changed.items():
        section, key = name.split("__")
        raw[section][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")


@pytest.fixture
def history(params, tmp_path, monkeypatch):
    """A repository whose tag `before` holds one run, whose branch `after` a better one; returns the params."""
    small = workspace(params, tmp_path, monkeypatch)
    git("init", "--quiet", "--initial-branch", "after")
    write_params(small)
    commit("one")
    git("tag", "before")
    write_params(small, lora__r=16)
    bend("eval/quality/merged.json", "metrics", "perplexity", "value", value=30.0)
    bend("eval/bench/Q4_K_M.json", "rows", 1, "quality", "kld", "value", value=0.9)
    commit("two")
    return small


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pipeline", "compare", *arguments])
    return cli.main()


def shown() -> str:
    return re.sub(r"\s+", " ", " ".join(Page(PAGE.read_text(encoding="utf-8")).shown))


def context(before: str, after: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        return comparison.context(*compare._sides([before, after], Path(folder)))


def cells(table) -> dict[str, list[str]]:
    return {row[0].text: [f"{cell.text} {cell.detail}".strip() for cell in row[1:]] for row in table.rows}


def test_a_page_says_what_differs_and_which_way(history, monkeypatch):
    assert run(monkeypatch, "before", "after") == 0
    page = Page(PAGE.read_text(encoding="utf-8"))
    assert all(target.startswith("#") for target in page.loads)
    assert page.tags.count("script") == 1
    assert "before → after" in shown()
    made = context("before", "after")
    r = history.lora.r
    assert cells(made["settings"]) == {"lora.r": [str(r), "16"]}
    assert cells(made["headline"])["quality.ppl"] == ["35.4", "30", "−5.4", "better"]
    assert cells(made["headline"])["ppl.Q4_K_M"][2:] == ["0", "–"]
    assert cells(made["scoreboard"])["merged"][1] == "35.40 → 30.00 better by 5.40"
    assert cells(made["scoreboard"])["Q8_0"][1] == "35.41"


def test_rows_beyond_error_are_marked(history):
    made = context("before", "after")
    names = [row[0].text for row in made["scoreboard"].rows]
    assert {names[index] for index in made["scoreboard"].marked} == {"merged"}
    encoding, depth, table = made["policies"][1]  # depths come deepest first
    assert (encoding, depth) == ("Q4_K_M", 256)
    assert {table.rows[index][0].text for index in table.marked} == {"recent_only 256"}
    assert cells(table)["recent_only 256"][6] == "0.6100 → 0.9000 worse by 0.2900"
    assert table.rows[0][0].text == "full"


def test_a_difference_within_error_is_called_so(history):
    bend("eval/quality/merged.json", "metrics", "perplexity", "value", value=30.1)
    assert cells(context("after", "workspace")["headline"])["quality.ppl"][3] == "within error"


def test_an_experiment_is_found_by_its_name(history, monkeypatch):
    baseline = git("rev-parse", "before")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/spare-gods", git("rev-parse", "after"))
    git("update-ref", "refs/exps/exec/EXEC_HEAD", baseline)
    assert revisions.experiments() == [("spare-gods", git("rev-parse", "after"))]
    assert run(monkeypatch, "before", "spare-gods") == 0
    assert "before → spare-gods" in shown()


def test_what_is_no_number_is_shown_and_not_judged(history):
    bend("eval/quality/merged.json", "metrics", "perplexity", "value", value="inf")
    made = context("after", "workspace")
    assert cells(made["scoreboard"])["merged"][1] == "30.00 → inf"
    assert cells(made["headline"])["quality.ppl"][3] == "–"


def test_what_one_side_lacks_is_a_dash(history):
    bench = io.read_json("eval/bench/Q4_K_M.json")
    bench["rows"] = [row for row in bench["rows"] if row["policy"] != "snapkv"]
    io.write_json("eval/bench/Q4_K_M.json", bench)
    _, _, table = context("after", "workspace")["policies"][0]
    assert cells(table)["snapkv 256"][5].endswith("→ –")


def test_params_of_an_earlier_pipeline_are_read(history):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    del raw["bench"]["slack"]
    raw["train"]["of_old"] = 3
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    commit("older")
    git("checkout", "--quiet", "before")
    differing = cells(context("after", "before")["settings"])
    assert differing["bench.slack"] == ["–", str(history.bench.slack)]
    assert differing["train.of_old"] == ["3", "–"]


def test_all_problems_of_both_sides_are_told_at_once(history):
    quality = io.read_json("eval/quality/Q8_0.json")
    del quality["metrics"]["kld"]
    io.write_json("eval/quality/Q8_0.json", quality)
    commit("another schema")
    with pytest.raises(UserError) as error:
        compare._sides(["after", "befor"], Path("scratch"))
    schema, unknown = error.value.problems
    assert schema.startswith("after: eval/quality/Q8_0.json: metrics.kld: field required")
    assert "dvc repro evaluate-quantized@Q8_0" in schema
    assert "befor: neither" in unknown
    assert "did you mean 'before'" in unknown


def test_a_revision_without_results_says_so(history):
    git("rm", "-r", "--quiet", "--cached", "eval")
    git("commit", "--quiet", "--message", "none")
    with pytest.raises(UserError, match="after: holds no results"):
        compare._sides(["after", "before"], Path("scratch"))


@pytest.mark.parametrize("out", ["eval/compare.html", "artifacts/x.html"])
def test_a_page_is_not_put_among_results(history, monkeypatch, capsys, out):
    assert run(monkeypatch, "before", "after", "--out", out) == 1
    assert "name a file elsewhere" in capsys.readouterr().err


def test_a_name_is_never_an_option_of_git(history):
    with pytest.raises(UserError, match="--output=x: neither"):
        revisions.resolve("--output=x")


def test_hostile_params_are_inert(history, monkeypatch):
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["quantize"]["finetune"] = "<script>alert(1)</script>"
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert run(monkeypatch, "before", "workspace") == 0
    assert Page(PAGE.read_text(encoding="utf-8")).tags.count("script") == 1
