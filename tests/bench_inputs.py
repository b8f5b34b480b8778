"""A directory that holds what the benchmark of the tiny model reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import io

from .bench_runs import chats
from .conftest import ROOT


@pytest.fixture(scope="session")
def bench_inputs(tiny_model_dir, tiny_gguf, tmp_path_factory) -> Path:
    """A directory that holds what bench reads."""
    directory = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_model_dir, directory / "artifacts/merged")
    (directory / "artifacts/quantized/Q4_0").mkdir(parents=True)
    shutil.copy(tiny_gguf("Q4_0"), directory / "artifacts/quantized/Q4_0")
    shutil.copytree(ROOT / "recipes", directory / "recipes")
    (directory / "data").mkdir()
    (directory / "data/embedded").symlink_to(ROOT / "data/embedded")
    io.write_jsonl(directory / "data/chat/test.jsonl", chats(40))
    return directory


@pytest.fixture
def workplace(bench_inputs, tmp_path, monkeypatch) -> Path:
    """A copy of the inputs as the current directory."""
    directory = tmp_path / "work"
    shutil.copytree(bench_inputs, directory, symlinks=True, ignore=shutil.ignore_patterns("eval"))
    monkeypatch.chdir(directory)
    return directory
