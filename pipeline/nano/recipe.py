"""recipe.yaml -> the recipe: the one place where the nano models' numbers are written."""

from __future__ import annotations

from pathlib import Path

import yaml

PATH = Path(__file__).with_suffix(".yaml")


def load(path: Path = PATH) -> dict:
    """Return the recipe as nested dictionaries."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
