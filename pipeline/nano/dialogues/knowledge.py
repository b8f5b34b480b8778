"""The knowledge tables in pipeline/nano/knowledge (YAML), read and cross-checked.

A condition has its patient language (six symptoms, three triggers), tongue, pulse, cause, principle and formula,
advice (care, eat, avoid: four each), red flags (three), the usual length of the complaint (span: day, week, month
or year), the days of medicine before a review, and whom it befalls (who: a key of patients.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KNOWLEDGE = Path(__file__).parent.parent / "knowledge"
LISTS = {"symptoms": 6, "triggers": 3, "care": 4, "eat": 4, "avoid": 4, "flags": 3}


@dataclass(frozen=True)
class Herb:
    """One herb; ``low`` and ``high`` bound its decoction dose in grams a day."""

    name: str
    nature: str
    effect: str
    low: int
    high: int
    fit: str
    unfit: str
    use: str


@dataclass(frozen=True)
class Formula:
    """One formula; ``herbs`` maps each herb to its grams, ``without`` is a toxic herb left out of it."""

    name: str
    effect: str
    herbs: dict[str, int]
    unfit: str
    without: str


@dataclass(frozen=True)
class Condition:
    """One condition in one syndrome, with all that is said of it."""

    name: str
    group: str
    syndrome: str
    symptoms: tuple[str, ...]
    tongue: str
    pulse: str
    cause: str
    principle: str
    formula: str
    triggers: tuple[str, ...]
    care: tuple[str, ...]
    eat: tuple[str, ...]
    avoid: tuple[str, ...]
    flags: tuple[str, ...]
    span: str
    days: int
    ask: tuple[str, ...]
    who: str = "any"
    note: str = ""
    ages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drug:
    """One Western medicine, the herbs that meet it and what happens then; beside a narrow one every herb matters."""

    name: str
    disease: str
    herbs: tuple[str, ...]
    risk: str
    advice: str
    narrow: bool = False


@dataclass(frozen=True)
class Emergency:
    """One sign that needs the emergency room at once."""

    sign: str
    where: str
    risk: str
    do: tuple[str, ...]
    dont: str
    who: str


@dataclass(frozen=True)
class Knowledge:
    """All tables; ``harmful`` are the herbs to avoid in pregnancy, the dictionaries below it are plain YAML."""

    herbs: dict[str, Herb]
    formulas: dict[str, Formula]
    conditions: tuple[Condition, ...]
    drugs: tuple[Drug, ...]
    emergencies: tuple[Emergency, ...]
    harmful: frozenset[str]
    signs: dict[str, dict[str, str]]
    patients: dict[str, dict]
    sentences: dict[str, list[str]]
    kinds: dict[str, dict]
    turns: dict[str, dict]


def load(folder: Path = KNOWLEDGE) -> Knowledge:
    """Read every table below ``folder``.

    Raises:
        UserError: a table names what another lacks, a dose leaves its range, or a list has the wrong length.
    """
    tables = {path.stem: _read(path) for path in sorted(folder.glob("*.yaml"))}
    safety, turns = tables["safety"], tables["turns"]
    knowledge = Knowledge(
        herbs={name: _herb(name, **fields) for name, fields in tables["herbs"].items()},
        formulas={name: Formula(name, **{"without": ""} | fields) for name, fields in tables["formulas"].items()},
        conditions=_conditions(folder / "conditions"),
        drugs=tuple(Drug(name, **_tuples(fields)) for name, fields in safety["drugs"].items()),
        emergencies=tuple(Emergency(**_tuples(fields)) for fields in safety["emergencies"]),
        harmful=frozenset(safety["pregnancy"]["avoid"]),
        signs=tables["signs"],
        patients=tables["patients"],
        sentences=_sentences(folder / "phrases"),
        kinds=turns["kinds"],
        turns=turns["turns"],
    )
    problems = _problems(knowledge)
    if problems:
        raise UserError(*problems)
    return knowledge


def _read(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)


def _herb(name: str, dose: list[int], use: str = "", **fields: str) -> Herb:
    return Herb(name, low=dose[0], high=dose[1], use=use, **fields)


def _tuples(fields: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _conditions(folder: Path) -> tuple[Condition, ...]:
    conditions = []
    for path in sorted(folder.glob("*.yaml")):
        table = _read(path)
        ask = tuple(table["ask"])
        conditions += [Condition(**_tuples(fields), ask=ask) for fields in table["conditions"]]
    return tuple(conditions)


def _sentences(folder: Path) -> dict[str, list[str]]:
    return {key: phrases for path in sorted(folder.glob("*.yaml")) for key, phrases in _read(path).items()}


def _problems(knowledge: Knowledge) -> list[str]:
    """Return one line for each fact that contradicts another table."""
    problems = []
    for formula in knowledge.formulas.values():
        for name, grams in formula.herbs.items():
            herb = knowledge.herbs.get(name)
            if herb is None:
                problems.append(f"formulas.yaml: {formula.name}: {name} is not in herbs.yaml; add it there")
            elif not herb.low <= grams <= herb.high:
                expected = f"expected {herb.low} to {herb.high}"
                problems.append(f"formulas.yaml: {formula.name}: {name} has {grams} g; {expected} (herbs.yaml)")
    for condition in knowledge.conditions:
        if condition.formula not in knowledge.formulas:
            problems.append(f"{condition.name}: formula {condition.formula} is not in formulas.yaml; add it there")
        for key, length in LISTS.items():
            found = len(getattr(condition, key))
            if found != length:
                problems.append(f"{condition.name}: {key} has {found} entries; expected {length}")
    named = knowledge.harmful.union(*(drug.herbs for drug in knowledge.drugs))
    unknown = sorted(named - set(knowledge.herbs))
    return problems + [f"safety.yaml: {name} is not in herbs.yaml; add it there" for name in unknown]
