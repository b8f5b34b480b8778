"""Who asks: patients drawn from patients.yaml, and which triggers and symptoms may be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Patient:
    """One patient: ``me`` is the word in the question, ``you`` the one in the answer."""

    me: str
    you: str
    sex: str
    age: int
    job: str
    traits: tuple[str, ...]


FITS = {  # groups by sex and age, named in patients.yaml (only) and turns.yaml (only)
    "fertile": lambda sex, age: sex == "女" and 18 <= age <= 50,
    "bearing": lambda sex, age: sex == "女" and 20 <= age <= 42,
    "female": lambda sex, age: sex == "女",
    "old": lambda sex, age: age >= 55,
    "young": lambda sex, age: 12 <= age <= 30,
    "working": lambda sex, age: 20 <= age < 60,
    "settled": lambda sex, age: age >= 40,
    "grown": lambda sex, age: age >= 18,
}


def draw(tables: dict, who: str, rng: Random, ages: tuple[int, ...] = ()) -> Patient:
    """Return a random patient of the group ``who``; ``ages`` overrides the group's span of years."""
    entry = tables["patients"][rng.choice(tables["who"][who])]
    age = rng.randint(*(ages or entry["ages"]))
    sex = rng.choice(entry["sex"])
    stage = who if who in ("child", "mother", "pregnant") else "elder" if age >= 65 else "adult"
    me = rng.choice(entry["me"])
    traits = [stage] + [name for name, fits in FITS.items() if fits(sex, age)] + ["self"] * (me == "我")
    job = rng.choice(tables["jobs"][_job(stage, age)])
    return Patient(me, rng.choice(entry["you"]), sex, age, job, tuple(traits))


def _job(stage: str, age: int) -> str:
    if stage in ("child", "mother", "pregnant"):
        return stage
    return "student" if age <= 23 else "young_worker" if age <= 45 else "worker" if age < 60 else "retired"


def suits(tables: dict, text: str, patient: Patient) -> bool:
    """Return whether ``text`` (a trigger, a symptom or a piece of advice) may be said of the patient."""
    return all(
        trait in patient.traits for trait, words in tables["only"].items() if any(word in text for word in words)
    )


def span(tables: dict, length: str, patient: Patient, rng: Random) -> str:
    """Return how long the complaint has lasted, in words."""
    key = "child" if length == "year" and "child" in patient.traits else length
    return rng.choice(tables["spans"][key])
