"""Where results come from: the commit, the recipes that params name, and the data as DVC fingerprinted it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import recipes
from pipeline.config import Params
from pipeline.reporting.records import Record

LOCK = Path("dvc.lock")
CODE = ("pipeline", "recipes", "params.yaml", "dvc.yaml", "requirements.lock")
TRACED = {  # stage: what it made that all results rest on
    "download": "data/raw",
    "base": "artifacts/base",
    "convert": "data/chat",
    "train": "artifacts/adapter",
    "merge": "artifacts/merged",
}


class PolicyRecipe(Record):
    """What the report says of recipes/kv/<name>.yaml besides the benchmark's rows."""

    paper: str = ""
    published: tuple[str, ...] = ()
    prefill: Any = None
    decode: Any = None
    narrow: Any = None
    online: bool = False


@dataclass(frozen=True)
class Fingerprint:
    """A file or folder: its size in bytes, where known, and a hash of its content."""

    name: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class Origin:
    """What a run was made from; ``unused`` names the recipes of policies that params leave out."""

    commit: str | None  # None outside a Git checkout
    changed: bool  # code, recipes or params differ from the commit
    recipes: list[Fingerprint]
    policies: dict[str, PolicyRecipe]
    unused: list[str]
    made: list[Fingerprint]


def read(params: Params, problems: list[str]) -> Origin:
    """Return what the results were made from; what is wrong with a recipe is added to ``problems``."""
    files = [recipes.ROOT / kind / f"{name}.yaml" for kind, name in _named(params)]
    texts = {path: text for path in files if (text := _text(path, problems)) is not None}
    policies = {path.stem: _policy(path, text, problems) for path, text in texts.items() if path.parent.name == "kv"}
    commit, changed = _commit()
    return Origin(
        commit=commit,
        changed=changed,
        recipes=[Fingerprint(str(path), len(text), hashlib.sha256(text).hexdigest()) for path, text in texts.items()],
        policies=policies,
        unused=[name for name in recipes.names("kv") if name not in policies],
        made=list(_made()),
    )


def _named(params: Params) -> Iterator[tuple[str, str]]:
    yield "models", params.model
    yield "accelerate", params.train.accelerate
    yield from (("quantize", name) for name in params.quantize.encodings)
    yield "scorers", params.evaluate.scorer
    yield from (("kv", name) for name in params.bench.policies)


def _text(path: Path, problems: list[str]) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        problems.append(f"{path}: missing, but params.yaml names it; restore it or name another")
    return None


def _policy(path: Path, text: bytes, problems: list[str]) -> PolicyRecipe:
    try:
        return PolicyRecipe.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        problems.append(f"{path}: not a policy's recipe ({' '.join(str(error).split())[:120]}); restore it")
    return PolicyRecipe()


def _commit() -> tuple[str | None, bool]:
    """Return the commit checked out here, and whether what is run differs from it."""
    commit = _git("rev-parse", "--verify", "HEAD")
    return commit, bool(commit and _git("status", "--porcelain", "--", *CODE))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _made() -> Iterator[Fingerprint]:
    """Yield the data and models that results rest on, as DVC recorded them; nothing where it has not run."""
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return
    for stage, name in TRACED.items() if isinstance(stages, dict) else ():
        for out in stages.get(stage, {}).get("outs", []):
            if out.get("path") == name:
                yield Fingerprint(name, out.get("size"), str(out.get("md5", "")))
