"""recipes/<kind>/<name>.yaml: the choices that params.yaml names."""

from __future__ import annotations

from pathlib import Path

from pipeline import schema
from pipeline.errors import ConfigError, nearest

ROOT = Path("recipes")


def names(kind: str) -> list[str]:
    """Return the names of all recipes of a kind, sorted."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))


def unknown(kind: str, name: str) -> str | None:
    """Return what is wrong with a recipe's name, or None if the recipe exists."""
    known = names(kind)
    if name in known:
        return None
    return f"no recipe '{name}' in {ROOT / kind}{nearest(name, known)} (known: {', '.join(known)})"


def read(kind: str, name: str, model: type[schema.Model]) -> schema.Model:
    """Read one recipe as ``model``; raise ConfigError if it does not exist or does not fit."""
    if problem := unknown(kind, name):
        raise ConfigError(problem)
    return schema.read(ROOT / kind / f"{name}.yaml", model)
