"""Where results come from: recipes are hashed, a missing one is named, commit and data fingerprints are shown."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from pipeline import report
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting import provenance
from pipeline.reporting.load import load
from tests.report_pages import workspace

LOCK = """stages:
  convert:
    outs:
    - {path: eval/timings/convert.json, md5: aaa, size: 1}
    - {path: data/chat, md5: 01efcad6.dir, size: 2079803, nfiles: 4}
"""


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


def test_every_recipe_that_params_name_is_hashed(results):
    found = {one.name: one.digest for one in load(results).origin.recipes}
    assert set(found) == {str(path) for path in Path("recipes").rglob("*.yaml")} - {"recipes/kv/spare.yaml"}
    for name, digest in found.items():
        assert digest == hashlib.sha256(Path(name).read_bytes()).hexdigest()


def test_a_recipe_that_is_missing_or_broken_is_named(results):
    Path("recipes/kv/snapkv.yaml").unlink()
    Path("recipes/kv/full.yaml").write_text("- a list", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        report.main(results)
    broken, missing = sorted(caught.value.problems)
    assert broken.startswith("recipes/kv/full.yaml: not a policy's recipe")
    assert missing == "recipes/kv/snapkv.yaml: missing, but params.yaml names it; restore it or name another"


def test_what_was_not_run_is_said(results):
    said = provenance.not_run(load(results))
    assert "These recipes in recipes/kv/ are not in bench.policies: spare." in said
    assert any("Q8_0" in sentence and "bench.encodings" in sentence for sentence in said)
    assert any("W4A16" in sentence and "GPU" in sentence for sentence in said)


def test_dvc_s_fingerprints_are_shown_where_there_are_some(results):
    assert provenance.made(load(results)).rows == []
    Path("dvc.lock").write_text(LOCK, encoding="utf-8")
    rows = [[cell.text for cell in row] for row in provenance.made(load(results)).rows]
    assert rows == [["data/chat", "2,079,803", "01efcad6.dir"]]
    Path("dvc.lock").write_text("stages: []\n", encoding="utf-8")
    assert provenance.made(load(results)).rows == []


def test_the_commit_is_named_with_what_is_not_in_it(results):
    assert provenance.commit(load(results)) == "outside a Git checkout"
    git("init", "-q")
    git("add", "recipes")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "One")
    commit = git("rev-parse", "HEAD")
    assert provenance.commit(load(results)) == f"at commit {commit[:12]}"
    assert provenance.commands(load(results))[0] == f"git checkout {commit[:12]}"
    with Path("recipes/kv/full.yaml").open("a", encoding="utf-8") as file:
        file.write("# more\n")
    assert provenance.commit(load(results)).endswith("with changes that are not committed")


def git(*arguments: str) -> str:
    """Run git here and return what it prints."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
