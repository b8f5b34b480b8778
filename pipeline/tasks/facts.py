"""People, what is on file about them, and how it is said: the stuff of recall tasks and of their training documents.

Every name and every value belongs, by a hash of its text, either to training or to the test; the phrasings are two
separate lists (pools.yaml). A model that answers a test question can therefore only have read it in the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from pipeline.tasks.pools import pools

HELD_OUT_SHARE = 4  # one name or value in so many belongs to the test


@dataclass(frozen=True)
class Field:
    """One thing on file about a person: how a value is made and how one asks for it."""

    value: Callable[[Random], str]
    ask: str


class Fact(NamedTuple):
    """``person``'s ``field`` is ``value``."""

    person: str
    field: str
    value: str


def _digits(rng: Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


FIELDS = {
    "编号": Field(lambda rng: _digits(rng, 4), "是多少"),
    "电话尾号": Field(lambda rng: _digits(rng, 4), "是多少"),
    "病历号": Field(lambda rng: rng.choice("ABCDEFGHJK") + _digits(rng, 4), "是多少"),
    "床位": Field(lambda rng: f"{rng.randint(1, 9)}区{rng.randint(10, 99)}床", "是哪张"),
    "剂量": Field(lambda rng: f"{rng.randint(11, 399)}{rng.choice(['克', '毫克', '毫升'])}", "是多少"),
    "复诊日": Field(lambda rng: f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日", "是哪天"),
    "口令": Field(lambda rng: rng.choice(pools().words), "是什么"),
    "药材": Field(lambda rng: rng.choice(pools().herbs), "是什么"),
    "籍贯": Field(lambda rng: rng.choice(pools().cities), "是哪里"),
}


def held_out(text: str) -> bool:
    """Tell whether a name or value belongs to the test."""
    return hashlib.blake2b(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def draw(rng: Random, make: Callable[[Random], str], test: bool, used: set[str] | None = None) -> str:
    """Return the first text that ``make`` gives on the wanted side of the split and that ``used`` lacks; note it."""
    while True:
        text = make(rng)
        if held_out(text) == test and (used is None or text not in used):
            if used is not None:
                used.add(text)
            return text


def _name(rng: Random) -> str:
    return rng.choice(pools().surnames) + "".join(rng.choice(pools().given) for _ in range(rng.randint(1, 2)))


def person(rng: Random, test: bool, used: set[str]) -> str:
    """Return a new name, and note it in ``used``."""
    return draw(rng, _name, test, used)


def fact(rng: Random, fields: list[str], test: bool, used: set[str]) -> Fact:
    """Return one fact about a new person, with a field out of ``fields``."""
    field = rng.choice(fields)
    return Fact(person(rng, test, used), field, draw(rng, FIELDS[field].value, test))


def record(rng: Random, fields: list[str], test: bool, used: set[str]) -> list[Fact]:
    """Return one fact for each of ``fields`` about one new person."""
    name = person(rng, test, used)
    return [Fact(name, field, draw(rng, FIELDS[field].value, test)) for field in fields]


def state(pattern: str, fact: Fact) -> str:
    """Say a fact in the words of ``pattern``."""
    return pattern.format(person=fact.person, field=fact.field, value=fact.value)


def state_record(pattern: tuple[str, str], facts: list[Fact]) -> str:
    """Say all facts about one person in one line."""
    opening, item = pattern
    items = "，".join(item.format(field=fact.field, value=fact.value) for fact in facts)
    return f"{opening.format(person=facts[0].person)}，{items}。"


def ask(pattern: str, fact: Fact) -> str:
    """Ask for a fact in the words of ``pattern``; the answer follows the text returned."""
    return pattern.format(person=fact.person, field=fact.field, ask=FIELDS[fact.field].ask)
