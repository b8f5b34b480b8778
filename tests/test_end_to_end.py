"""The whole DAG in a temporary copy of the repository, on the smallest settings: it runs, rests, and experiments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

SMALLEST = {
    "convert": {"validation": 8, "test": 6},
    "train": {"max_steps": 2, "batch_size": 2, "evals": 1},
    "quantize": {
        "encodings": ["Q4_K_M", "FP8-Dynamic"],
        "calibration_dialogues": 4,
        "calibration_tokens": 64,
        "verify_dialogues": 4,
    },
    "evaluate": {"dialogues": 6, "max_new_tokens": 8, "samples": 2},
    "bench": {
        "depths": [320],
        "budgets": [64],
        "decode_tokens": 8,
        "warmup_tokens": 2,
        "repetitions": 1,
        "scored_tokens": 16,
        "recall_contexts": 1,
        "recall_questions": 2,
        "conversations": 1,
        "slack": 8,
        "answers": {"policies": ["snapkv"], "budget": 40},
    },
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A Git and DVC repository with the files that Git tracks here, set to the smallest run."""
    directory = tmp_path_factory.mktemp("clone") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, directory / name)
    (directory / "dvc.lock").unlink(missing_ok=True)
    params = yaml.safe_load((directory / "params.yaml").read_text(encoding="utf-8"))
    for section, changes in SMALLEST.items():
        params[section] |= changes
    (directory / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run([*git, "init", "--quiet"], cwd=directory, check=True)
    subprocess.run([*git, "add", "--all"], cwd=directory, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "start"], cwd=directory, check=True)
    return directory


def dvc(clone: Path, *arguments: str) -> str:
    """Run a DVC command in the clone and return what it printed; fail with its output if it fails."""
    environment = os.environ | {
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.invalid",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.invalid",
    }
    done = subprocess.run(["dvc", *arguments], cwd=clone, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_pipeline_runs_rests_and_experiments(clone):
    dvc(clone, "repro")
    assert (clone / "eval/report.md").stat().st_size > 1000
    assert (clone / "eval/report.html").stat().st_size > 1000
    headline = json.loads((clone / "eval/metrics.json").read_text(encoding="utf-8"))
    assert headline

    assert "up to date" in dvc(clone, "repro")

    dvc(clone, "exp", "run", "--set-param", "lora.r=4", "train")
    assert json.loads((clone / "artifacts/adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
