"""Scenes: what one dialogue is about, as the slots of its sentences, drawn from the knowledge tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from random import Random

from pipeline.nano.dialogues import patients
from pipeline.nano.dialogues.knowledge import Condition, Drug, Emergency, Formula, Herb, Knowledge

CHILDREN_TOO = frozenset(  # groups of adult conditions that parents ask about
    ("感冒", "咳嗽", "咽痛", "腹泻", "便秘", "胃痛", "湿疹", "荨麻疹", "汗证", "口腔溃疡", "过敏性鼻炎", "鼻窦炎")
)
DRINKS = ("酒", "茶", "咖啡", "饮", "饮料", "水", "汤", "粥", "奶", "浆")
LONG_DECOCTION = tuple("补滋益养温健")  # first characters of the principles of tonics, which boil longer


class Scene(dict):
    """The slots of one dialogue's sentences, and its traits, which choose between variants of a sentence."""

    def __init__(self, knowledge: Knowledge, rng: Random, traits: tuple[str, ...], **slots):
        super().__init__(slots)
        self.sentences = knowledge.sentences
        self.rng = rng
        self.traits = traits

    def __missing__(self, key: str) -> str:
        return self.say(key)

    def say(self, key: str) -> str:
        """Return a random sentence of ``key``, of its variant for one of the traits if there is one, filled in."""
        variant = next((f"{key}.{trait}" for trait in self.traits if f"{key}.{trait}" in self.sentences), key)
        return self.rng.choice(self.sentences[variant]).format_map(self)

    def reshuffle(self) -> None:
        """Draw the advice anew, so that the next answer gives other parts of it."""
        for key in ("care", "eat", "avoid", "flag"):
            if key in self:
                self[key] = self.rng.sample(self[key], len(self[key]))
        if "eat" in self:
            self.update(eat_do=_verb(self["eat"][0]), avoid_do=_verb(self["avoid"][0]))


def of_condition(
    knowledge: Knowledge,
    rng: Random,
    condition: Condition,
    who: str = "",
    herb: Herb | None = None,
    drug: Drug | None = None,
) -> Scene:
    """Return the scene of a patient with ``condition``; ``herb`` and ``drug`` are drawn where they are not given."""
    who = who or condition.who
    patient = patients.draw(knowledge.patients, who, rng, condition.ages if who == condition.who else ())
    formula = knowledge.formulas[condition.formula]
    herb = herb or knowledge.herbs[rng.choice(list(formula.herbs))]
    drug = drug or rng.choice(_drugs(knowledge, formula, rng))
    scene = Scene(
        knowledge,
        rng,
        patient.traits + _formula_traits(knowledge, formula, drug),
        p=patient,
        c=condition,
        f=formula,
        h=herb,
        drug=drug,
        **_story(knowledge, rng, condition, patient),
        **_medicine(knowledge, rng, formula),
        **_reading(knowledge.signs, condition),
        grams=formula.herbs.get(herb.name, herb.low),
        clash="、".join(name for name in formula.herbs if name in drug.herbs),
        minutes=40 if condition.principle.startswith(LONG_DECOCTION) else 20,
        rest=max(2, condition.days // 2),
        months=rng.randint(2, 8),
    )
    scene.reshuffle()
    return scene


def _story(knowledge: Knowledge, rng: Random, condition: Condition, patient: patients.Patient) -> dict:
    """Return the slots that tell the complaint and the advice, in random order."""
    tables = knowledge.patients

    def fitting(texts: tuple[str, ...]) -> list[str]:
        return [text for text in texts if patients.suits(tables, text, patient)]

    chief, *others = fitting(condition.symptoms)
    return {
        "s": [chief, *rng.sample(others, len(others))],
        "trigger": rng.choice(fitting(condition.triggers) or ["没有明显原因"]),
        "span": patients.span(tables, condition.span, patient, rng),
        "care": fitting(condition.care),
        "eat": condition.eat,
        "avoid": fitting(condition.avoid),
        "flag": condition.flags,
        "ask": rng.sample(condition.ask, len(condition.ask)),
    }


def _verb(food: str) -> str:
    """Return the verb that goes with a food, a drink, or tobacco."""
    return "碰" if "烟" in food else "喝" if food.endswith(DRINKS) else "吃"


def _medicine(knowledge: Knowledge, rng: Random, formula: Formula) -> dict:
    """Return the slots that write out a formula: all doses, the first few, names, ways of decoction, unsafe herbs."""
    doses = [f"{name}{grams}克" for name, grams in formula.herbs.items()]
    lead = min(rng.randint(2, 4), len(doses) - 1)
    special: dict[str, list[str]] = {}
    for name in formula.herbs:
        special.setdefault(knowledge.herbs[name].use, []).append(name)
    harm = [name for name in formula.herbs if name in knowledge.harmful]
    return {
        "doses": "、".join(doses),
        "lead": "、".join(doses[:lead]),
        "names": "、".join(list(formula.herbs)[:lead]),
        "special": "，".join("、".join(names) + use for use, names in special.items() if use),
        "harm": "、".join(harm[:3]),
    }


def _formula_traits(knowledge: Knowledge, formula: Formula, drug: Drug) -> tuple[str, ...]:
    facts = {
        "reduced": bool(formula.without),
        "harmful": any(name in knowledge.harmful for name in formula.herbs),
        "special": any(knowledge.herbs[name].use for name in formula.herbs),
        "clash": _meets(drug, formula),
    }
    return tuple(trait for trait, holds in facts.items() if holds)


def _drugs(knowledge: Knowledge, formula: Formula, rng: Random) -> list[Drug]:
    """Return the drugs that meet a herb of the formula, or (one time in three) those that do not."""
    meeting = [drug for drug in knowledge.drugs if _meets(drug, formula)]
    apart = [drug for drug in knowledge.drugs if drug not in meeting and not drug.narrow]
    return meeting if meeting and rng.random() > 1 / 3 else apart


def _meets(drug: Drug, formula: Formula) -> bool:
    return any(name in drug.herbs for name in formula.herbs)


def _reading(signs: dict[str, dict[str, str]], condition: Condition) -> dict:
    """Return what the condition's tongue and pulse point to, sign by sign."""
    tongue = []
    for table in (signs["tongue"], signs["coating"]):
        found = [sign for sign in table if sign in condition.tongue]
        if found:
            sign = max(found, key=len)
            tongue.append(f"{sign}提示{table[sign]}")
    pulse = [f"{sign}主{meaning}" for sign, meaning in signs["pulse"].items() if sign in condition.pulse]
    return {"tongue_read": "，".join(tongue), "pulse_read": f"{condition.pulse}，" + "，".join(pulse)}


def of_pregnancy(knowledge: Knowledge, rng: Random, condition: Condition) -> Scene:
    """Return the scene of a pregnant patient with ``condition``."""
    return of_condition(knowledge, rng, condition, who="pregnant")


def of_child(knowledge: Knowledge, rng: Random, condition: Condition) -> Scene:
    """Return the scene of a child with a condition whose formula is for adults."""
    return of_condition(knowledge, rng, condition, who="child")


def of_drug(knowledge: Knowledge, rng: Random, drug: Drug, condition: Condition) -> Scene:
    """Return the scene of a patient past forty who takes ``drug`` and has ``condition``."""
    return of_condition(knowledge, rng, condition, who="elder" if condition.who == "elder" else "middle", drug=drug)


def of_herb(knowledge: Knowledge, rng: Random, herb: Herb) -> Scene:
    """Return the scene of a question about ``herb``, beside a condition whose formula has it, if one does."""
    using = [c for c in knowledge.conditions if herb.name in knowledge.formulas[c.formula].herbs and c.who != "child"]
    condition = rng.choice(using or [knowledge.conditions[0]])
    scene = of_condition(knowledge, rng, condition, who="any", herb=herb)
    facts = {"special": bool(herb.use), "harmful": herb.name in knowledge.harmful, "alone": not using}
    scene.traits = scene["p"].traits + tuple(trait for trait, holds in facts.items() if holds)
    return scene


def of_pair(knowledge: Knowledge, rng: Random, condition: Condition, other: Condition) -> Scene:
    """Return the scene of a patient with ``condition`` that is to be told from ``other``."""
    scene = of_condition(knowledge, rng, condition)
    scene.update(d=other, g=knowledge.formulas[other.formula], t=rng.sample(other.symptoms, len(other.symptoms)))
    return scene


def of_herb_pair(knowledge: Knowledge, rng: Random, herb: Herb, other: Herb) -> Scene:
    """Return the scene of a question which of two herbs that share an effect to take."""
    scene = of_herb(knowledge, rng, herb)
    scene.update(k=other, shared=_shared_effect(herb, other))
    return scene


def of_emergency(knowledge: Knowledge, rng: Random, emergency: Emergency) -> Scene:
    """Return the scene of somebody who reports an emergency."""
    patient = patients.draw(knowledge.patients, emergency.who, rng)
    return Scene(knowledge, rng, patient.traits, p=patient, e=emergency)


def _shared_effect(herb: Herb, other: Herb) -> str:
    shared = [effect for effect in herb.effect.split("、") if effect in other.effect.split("、")]
    return shared[0] if shared else ""


def subjects(knowledge: Knowledge) -> dict[str, list[tuple]]:
    """Return what each kind of scene can be about: the arguments of its maker after the generator."""
    conditions, herbs = knowledge.conditions, list(knowledge.herbs.values())
    adult = [c for c in conditions if c.who != "child"]
    return {
        "condition": [(c,) for c in conditions],
        "formula": [(c,) for c in adult],
        "herb": [(herb,) for herb in herbs],
        "drug": list(_drug_subjects(knowledge, [c for c in adult if c.who in ("any", "middle", "elder")])),
        "pregnancy": [(c,) for c in conditions if c.who == "any"],
        "child": [(c,) for c in conditions if c.who == "any" and c.group in CHILDREN_TOO],
        "emergency": [(e,) for e in knowledge.emergencies],
        "pair": [(a, b) for a, b in permutations(conditions, 2) if a.group == b.group and a.formula != b.formula],
        "herb_pair": [(a, b) for a, b in permutations(herbs, 2) if _shared_effect(a, b)],
    }


def _drug_subjects(knowledge: Knowledge, conditions: list[Condition]) -> Iterator[tuple[Drug, Condition]]:
    """Yield each drug with every condition whose formula meets it, and with every ninth of the others."""
    for drug in knowledge.drugs:
        for number, condition in enumerate(conditions):
            if _meets(drug, knowledge.formulas[condition.formula]) or (number % 9 == 0 and not drug.narrow):
                yield drug, condition


MAKERS: dict[str, Callable[..., Scene]] = {
    "condition": of_condition,
    "formula": of_condition,
    "herb": of_herb,
    "drug": of_drug,
    "pregnancy": of_pregnancy,
    "child": of_child,
    "emergency": of_emergency,
    "pair": of_pair,
    "herb_pair": of_herb_pair,
}
