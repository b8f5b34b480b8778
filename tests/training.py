"""Runs of fine-tuning that take seconds: their settings, how they are launched, and what they left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline import config
from tests.conftest import ROOT

SMALL = {  # a run of seconds
    "epochs": 1,
    "max_steps": 24,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "learning_rate": 0.002,
    "max_length": 128,
    "evals": 8,
    "early_stopping": 8,
    "bf16": False,
}


def changed(params: config.Params, section: str, **values) -> config.Params:
    """Return the parameters with some keys of a section changed."""
    part = getattr(params, section).model_copy(update=values)
    return params.model_copy(update={section: part})


def save_params(params: config.Params, directory: Path) -> None:
    (directory / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")


def launch(recipe: str, directory: Path) -> subprocess.Popen:
    """Start the stage in a process group of its own, as dvc.yaml does."""
    script = str(Path(sys.executable).with_name("accelerate"))
    command = [script, "launch", "--quiet", "--num_cpu_threads_per_process", "1"]
    command += ["--config_file", f"recipes/accelerate/{recipe}.yaml", "-m", "pipeline.train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=directory, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def weights(directory: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(directory / "adapter_model.safetensors")


def curves(directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((directory / "plots/metrics").glob("*.tsv"))}


def losses_of(directory: Path) -> list[float]:
    return [float(line.split("\t")[1]) for line in curves(directory)["loss"].splitlines()[1:]]
