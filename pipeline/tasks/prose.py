"""Medical prose made by this project, endless and harmless: what recall tasks hide their facts in."""

from __future__ import annotations

from random import Random

from pipeline.tasks.pools import pools


def sentence(rng: Random) -> str:
    """Return one sentence."""
    first = {part: rng.choice(words) for part, words in pools().parts.items()}
    second = {f"{part}2": rng.choice(words) for part, words in pools().parts.items()}
    return rng.choice(pools().sentences).format(**first, **second)


def paragraph(rng: Random, characters: int) -> str:
    """Return sentences of at least so many characters in all, in one line."""
    text = ""
    while len(text) < characters:
        text += sentence(rng)
    return text
