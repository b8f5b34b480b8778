"""Checkpoints of unfinished runs in .checkpoints/<key>, where the key is the hash of all that determines a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pipeline import io
from pipeline.config import Params

ROOT = Path(".checkpoints")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
STATE = "trainer_state.json"


def folder(params: Params, files: Iterable[Path]) -> Path:
    """Return the folder of the run that these params, the contents of ``files`` and the libraries determine."""
    run = {
        "params": params.model_dump(mode="json", include={"lora", "train", "runtime"}),
        "files": {str(file): io.sha256(file) for file in files},
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }
    return ROOT / hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None.

    The trainer writes its state last, so a checkpoint that was cut short by a crash has none that can be read.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((path for path in found if _complete(path)), None)


def _complete(checkpoint: Path) -> bool:
    try:
        io.read_json(checkpoint / STATE)
    except (OSError, ValueError):
        return False
    return True
