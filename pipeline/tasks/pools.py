"""pools.yaml -> the words, names and phrasings that recall tasks and their training documents are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Phrasings:
    """The ways to state facts and to ask for them; a question's last line is where its answer begins."""

    facts: tuple[str, ...]
    records: tuple[tuple[str, str], ...]  # (opening with the person, one field of it)
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Pools:
    """Everything in pools.yaml."""

    surnames: str
    given: str
    herbs: tuple[str, ...]
    words: tuple[str, ...]
    cities: tuple[str, ...]
    training: Phrasings
    test: Phrasings
    parts: dict[str, tuple[str, ...]]  # of the prose
    sentences: tuple[str, ...]


@cache
def pools() -> Pools:
    """Return the pools, read once."""
    data = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return Pools(
        surnames=data["surnames"],
        given=data["given"].replace(" ", ""),
        **{name: tuple(data[name].split()) for name in ("herbs", "words", "cities")},
        training=_phrasings(_combined(data["phrasings"]["training"])),
        test=_phrasings(data["phrasings"]["test"]),
        parts={part: tuple(words.split()) for part, words in data["prose"]["parts"].items()},
        sentences=tuple(data["prose"]["sentences"]),
    )


def _phrasings(data: dict) -> Phrasings:
    return Phrasings(
        facts=tuple(data["facts"]),
        records=tuple((opening, item) for opening, item in data["records"]),
        questions=tuple(data["questions"]),
    )


def _combined(data: dict) -> dict:
    """Return training phrasings with the parts of statements put together, each with each."""
    facts = map("".join, product(*data["facts"].values()))
    return data | {"facts": list(facts), "records": list(product(*data["records"].values()))}
