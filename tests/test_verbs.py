"""check and list: fast, complete, and free of model libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline import __main__ as cli
from pipeline import catalogue, check, recipes
from pipeline.errors import UserError
from tests.conftest import ROOT

HEAVY = {"torch", "transformers", "llama_cpp", "datasets", "trl", "peft", "llmcompressor", "bert_score", "evaluate"}


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_list_names_every_recipe(capsys):
    catalogue.main()
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for kind in catalogue.KINDS for name in recipes.names(kind))


def test_check_is_content_with_the_repository(capsys):
    check.main()
    assert capsys.readouterr().out.count(": ok") == len(check.CHECKS)


def test_check_tells_all_problems_at_once(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(check, "LOCK", lock)
    monkeypatch.setattr(check, "FREE_BYTES", 1 << 60)
    with pytest.raises(UserError) as error:
        check.main()
    assert [problem.split(":")[0] for problem in error.value.problems] == ["numpy", "no-such-package", "disk"]


@pytest.mark.parametrize(
    "module", ["pipeline.check", "pipeline.catalogue", "pipeline.chat", "pipeline.report", "pipeline.compare"]
)
def test_light_verbs_import_no_model_library(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_every_verb_is_in_the_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pipeline", "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = capsys.readouterr().out
    assert all(f"    {verb} " in printed for verb in cli.VERBS)
