"""Sample dialogues: the few whose answers are shown side by side, the same ones for every model and KV policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def chosen(dialogues: Sequence[dict], count: int) -> list[int]:
    """Return the places of ``count`` dialogues, chosen by the hash of their id, whatever their order."""
    order = sorted(range(len(dialogues)), key=lambda i: hashlib.blake2b(dialogues[i]["id"].encode()).digest())
    return order[:count]
