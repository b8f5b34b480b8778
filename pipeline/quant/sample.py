"""A seeded sample of training dialogues, to calibrate and to verify with, whatever the size of the file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def dialogues(path: str | Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Return ``count`` dialogues of a JSON Lines file in a seeded random order, or all if there are fewer.

    Only the chosen lines are parsed and kept. Raises UserError if the file has none.
    """
    with Path(path).open("rb") as lines:
        total = sum(1 for _ in lines)
    if not total:
        raise UserError(f"{path}: no dialogues to calibrate and verify with; run `dvc repro convert`")
    chosen = random.Random(seed).sample(range(total), min(count, total))
    places = {line: place for place, line in enumerate(chosen)}
    found: list[Any] = [None] * len(chosen)
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines):
            if number in places:
                found[places[number]] = json.loads(line)
    return found
