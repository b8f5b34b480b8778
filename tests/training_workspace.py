"""The repository root in which tests fine-tune the tiny model in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import config, io, train
from tests.conftest import ROOT
from tests.training import SMALL, changed, save_params


@pytest.fixture
def small(params) -> config.Params:
    """Parameters of a run of seconds."""
    return changed(changed(params, "train", **SMALL), "runtime", threads=1)


@pytest.fixture
def workspace(tmp_path, tiny_model_dir, small, monkeypatch) -> Path:
    """A repository root that holds what train reads, as the current directory."""
    talk = [
        {
            "id": f"d{i}",
            "messages": [
                {"role": "user", "content": f"咳嗽{i}天了，怎么办？"},
                {"role": "assistant", "content": f"多喝温水，休息{i}天。"},
            ],
        }
        for i in range(48)
    ]
    io.write_jsonl(tmp_path / train.SPLITS["train"], talk[:40])
    io.write_jsonl(tmp_path / train.SPLITS["validation"], talk[40:])
    (tmp_path / "artifacts").mkdir()
    (tmp_path / train.BASE).symlink_to(tiny_model_dir)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    save_params(small, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
