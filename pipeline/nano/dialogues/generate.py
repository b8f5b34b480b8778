"""Dialogues: composed turn by turn from the tables, split into train and test, near duplicates rejected.

Every candidate has a situation of its own (kind, subject, round) that seeds its patient and its wording. The test set
is taken first; a training dialogue that resembles it too much is rejected, and so is any near duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from pipeline.errors import UserError
from pipeline.nano.dialogues.knowledge import Knowledge
from pipeline.nano.dialogues.novelty import Seen, shingles
from pipeline.nano.dialogues.scenes import MAKERS, Scene, subjects

SEED = 2024
DIALOGUE_BOUND = 0.8  # no two dialogues are this similar, whatever their split
ANSWER_BOUND = 0.7  # no answer in train is this similar to one in test
MORE_TURNS = (1, 1, 2)  # further turns where a kind has them
ROUNDS = 100  # candidates per subject before the tables are called too narrow


@dataclass(frozen=True)
class Dialogue:
    """Pairs of question and answer, and the kind they are of."""

    kind: str
    turns: tuple[tuple[str, str], ...]

    def record(self) -> dict:
        """Return the dialogue in MedChatZH's schema; the earlier turns are its history."""
        question, answer = self.turns[-1]
        record = {"instruction": question, "input": "", "output": answer}
        return record | ({"history": [list(turn) for turn in self.turns[:-1]]} if len(self.turns) > 1 else {})

    def lines(self) -> list[str]:
        """Return all that is said, a message an item."""
        return [line for turn in self.turns for line in turn]


class Novelty:
    """Which dialogues are new: in all that is said, in the prompt, and in the answers from the other split's."""

    def __init__(self) -> None:
        self.dialogues = Seen(DIALOGUE_BOUND)
        self.answers = {"train": Seen(ANSWER_BOUND), "test": Seen(ANSWER_BOUND)}
        self.exact: set[str] = set()

    def accept(self, dialogue: Dialogue, split: str) -> bool:
        """Remember ``dialogue`` and return True, or return False if it resembles an accepted one too much."""
        other = self.answers["test" if split == "train" else "train"]
        answers = [shingles(answer) for _, answer in dialogue.turns]
        text = shingles("\n".join(dialogue.lines()))
        exact = {dialogue.turns[-1][1], "\n".join(dialogue.lines()[:-1])}
        if exact & self.exact or any(other.near(answer) for answer in answers) or self.dialogues.near(text):
            return False
        self.exact |= exact
        self.dialogues.add(text)
        for answer in answers:
            self.answers[split].add(answer)
        return True


def generate(knowledge: Knowledge, seed: int = SEED) -> dict[str, list[dict]]:
    """Return the records of the splits ``train`` and ``test``, shuffled; the same seed gives the same records.

    Raises:
        UserError: the tables are too narrow for the counts in turns.yaml.
    """
    about = subjects(knowledge)
    streams = {kind: candidates(knowledge, kind, about, seed) for kind in knowledge.kinds}
    novelty, splits = Novelty(), {}
    for split in ("test", "train"):
        chosen = []
        for kind, plan in knowledge.kinds.items():
            new = (dialogue for dialogue in streams[kind] if novelty.accept(dialogue, split))
            dialogues = list(islice(new, plan[split]))
            if len(dialogues) < plan[split]:
                found = f"only {len(dialogues)} of {plan[split]} {split} dialogues differ enough"
                raise UserError(f"turns.yaml: {kind}: {found}; ask for fewer, or widen the tables")
            chosen += dialogues
        Random(f"{seed}/{split}").shuffle(chosen)
        splits[split] = [dialogue.record() for dialogue in chosen]
    return splits


def candidates(knowledge: Knowledge, kind: str, about: dict[str, list[tuple]], seed: int) -> Iterator[Dialogue]:
    """Yield dialogues of a kind, round after round over its subjects, each round in a new order."""
    plan = knowledge.kinds[kind]
    for number in range(ROUNDS):
        numbered = list(enumerate(about[plan["about"]]))
        Random(f"{seed}/{kind}/{number}").shuffle(numbered)
        for index, subject in numbered:
            rng = Random(f"{seed}/{kind}/{number}/{index}")
            scene = MAKERS[plan["about"]](knowledge, rng, *subject)
            yield Dialogue(kind, compose(knowledge, scene, plan))


def compose(knowledge: Knowledge, scene: Scene, plan: dict) -> tuple[tuple[str, str], ...]:
    """Return the turns of one dialogue: those of the kind, then one or two of those that may follow."""
    first = [_turn(knowledge, scene, key) for key in plan["turns"]]
    fitting = [key for key in plan.get("then", ()) if knowledge.turns[key].get("only", scene.traits[0]) in scene.traits]
    later = scene.rng.sample(fitting, scene.rng.choice(MORE_TURNS)) if fitting else []
    return tuple(first + [_later_turn(knowledge, scene, key) for key in later])


def _turn(knowledge: Knowledge, scene: Scene, key: str) -> tuple[str, str]:
    turn = knowledge.turns[key]
    question = scene.say(turn["ask"])
    return question, "".join(_piece(scene, step) for step in turn["say"])


def _later_turn(knowledge: Knowledge, scene: Scene, key: str) -> tuple[str, str]:
    scene.reshuffle()
    if "f" in scene:
        scene["h"] = knowledge.herbs[scene.rng.choice(list(scene["f"].herbs))]
        scene["grams"] = scene["f"].herbs[scene["h"].name]
    question, answer = _turn(knowledge, scene, key)
    return scene.say("thanks") + question, answer


def _piece(scene: Scene, step: str) -> str:
    """Return one step of an answer: ``a|b`` is either, ``~a`` is left out half of the time."""
    if step.startswith("~") and scene.rng.random() < 0.5:
        return ""
    return scene.say(scene.rng.choice(step.lstrip("~").split("|")))
