"""Synthetic training documents: facts, records, needles in text, lists, and repeated spans, each a list of pieces.

A piece has a kind, which says how much its tokens count in the loss (`pretrain.weights` of the recipe). Pieces are
tokenised one by one, so that the boundary between question and answer is the same in training and in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from pipeline.tasks import facts, prose
from pipeline.tasks.facts import Fact
from pipeline.tasks.pools import pools


class Piece(NamedTuple):
    """Some text, how its tokens count, and the facts that it states or asks for."""

    text: str
    kind: str
    told: tuple[Fact, ...] = ()


ASKED_TWICE = 0.12
WORD_FIELDS = ("口令", "药材", "籍贯")
WORDS_ASKED = 0.5  # share of the questions that are about a word if any is left: these are copied worst
MOST_WORDS = 3  # run together in one value
MOST_LISTED = 12  # items of one list
LIST_OPENINGS = ("处方：", "方用", "需备", "包括", "其中有", "依次是")
LIST_BREAKS = ("、", "，", "；", " ")
THINK = "<think>\n\n</think>\n\n"


class Material(NamedTuple):
    """What documents are made from besides the pools: running text of some characters, and words of any sort."""

    text: Callable[[int], str]
    words: Sequence[str]
    varied: float  # share of the values that are made of ``words``

    def compound(self, rng: Random) -> str:
        """Return some words run together."""
        return "".join(rng.choices(self.words, k=rng.randint(1, MOST_WORDS)))


def varied(rng: Random, told: list[Fact], material: Material) -> list[Fact]:
    """Return facts of which some values are any words run together: nothing to know by heart, nor to guess on from."""

    def vary(fact: Fact) -> Fact:
        if fact.field not in WORD_FIELDS or rng.random() >= material.varied:
            return fact
        return fact._replace(value=facts.draw(rng, material.compound, test=False))

    return list(map(vary, told))


class Talk:
    """Questions and answers about the facts stated so far, in plain form or as turns of a chat."""

    def __init__(self, rng: Random, chat: bool):
        self.rng, self.chat = rng, chat
        patterns = [q for q in pools().training.questions if "\n" in q or not chat]
        self.patterns = patterns if rng.random() < 0.6 else [rng.choice(patterns)]
        self.known: list[Fact] = []
        self.unasked: list[Fact] = []

    def learn(self, new: list[Fact]) -> None:
        """Note facts that may be asked for."""
        self.known += new
        self.unasked += new

    def ask(self) -> list[Piece]:
        """Return one question and its answer."""
        among = self.unasked if self.unasked and self.rng.random() > ASKED_TWICE else self.known
        words = [fact for fact in among if fact.field in WORD_FIELDS]
        fact = self.rng.choice(words if words and self.rng.random() < WORDS_ASKED else among)
        self.unasked = [other for other in self.unasked if other is not fact]
        question = facts.ask(self.rng.choice(self.patterns), fact)
        if not self.chat:
            return [Piece(question, "question", (fact,)), Piece(fact.value, "answer"), Piece("。\n", "close")]
        return [
            Piece(question.split("\n")[0].split("：", 1)[-1], "question", (fact,)),
            *turn_to_answer(),
            Piece(fact.value, "answer"),
            *end_of_turn(),
        ]


def turn_to_answer() -> list[Piece]:
    """Return the end of a user's turn and the beginning of the answer, thinking off."""
    return [Piece("<|im_end|>\n<|im_start|>assistant\n", "control"), Piece(THINK, "none")]


def end_of_turn() -> list[Piece]:
    """Return the end of an answer and the beginning of the user's next turn."""
    return [Piece("。", "close"), Piece("<|im_end|>", "close"), Piece("\n<|im_start|>user\n", "control")]


def length(pieces: list[Piece]) -> int:
    """Return the characters of some pieces."""
    return sum(len(piece.text) for piece in pieces)


def pairs(rng: Random, characters: int, chat: bool, material: Material) -> list[Piece]:
    """One fact a person, one sentence each; questions at the end or in between."""
    fields = rng.sample(list(facts.FIELDS), rng.randint(1, 5))
    patterns = pools().training.facts if rng.random() < 0.6 else [rng.choice(pools().training.facts)]
    used: set[str] = set()

    def state() -> tuple[str, list[Fact]]:
        (fact,) = varied(rng, [facts.fact(rng, fields, False, used)], material)
        return facts.state(rng.choice(patterns), fact), [fact]

    return _notes(rng, characters, chat, state)


def records(rng: Random, characters: int, chat: bool, material: Material) -> list[Piece]:
    """Patients with several fields each, a line a patient; questions at the end or in between."""
    fields = rng.sample(list(facts.FIELDS), rng.randint(2, 5))
    pattern = rng.choice(pools().training.records)
    used: set[str] = set()

    def state() -> tuple[str, list[Fact]]:
        shown = rng.sample(fields, rng.randint(2, len(fields))) if rng.random() < 0.3 else fields
        about = varied(rng, facts.record(rng, shown, False, used), material)
        return facts.state_record(pattern if rng.random() < 0.8 else rng.choice(pools().training.records), about), about

    return _notes(rng, characters, chat, state)


def _notes(rng: Random, characters: int, chat: bool, state: Callable[[], tuple[str, list[Fact]]]) -> list[Piece]:
    talk, pieces = Talk(rng, chat), _opening(chat)
    interleaved = not chat and rng.random() < 0.4
    share = rng.uniform(0.4, 0.92)
    while length(pieces) < characters * share:
        text, new = state()
        pieces.append(Piece(text + "\n", "fact", tuple(new)))
        talk.learn(new)
        if interleaved and rng.random() < 0.5:
            pieces += talk.ask()
    while length(pieces) < characters:
        pieces += talk.ask()
    return pieces


def needles(rng: Random, characters: int, chat: bool, material: Material) -> list[Piece]:
    """Facts strewn over natural text or our own prose, questions at the end."""
    talk = Talk(rng, chat)
    count = rng.randint(2, max(3, min(12, characters // 80)))
    used: set[str] = set()
    strewn = [facts.fact(rng, list(facts.FIELDS), False, used) for _ in range(count)]
    strewn = varied(rng, strewn, material)
    talk.learn(strewn)
    questions = [piece for _ in range(rng.randint(2, count + 2)) for piece in talk.ask()]
    room = max(60, characters - length(questions) - 20 * count)
    text = material.text(room) if rng.random() < 0.6 else prose.paragraph(rng, room)
    cuts = sorted(rng.randint(0, len(text)) for _ in strewn)
    pieces, start = _opening(chat), 0
    for cut, fact in zip(cuts, strewn, strict=True):
        between = rng.choice(["\n", ""])
        pieces.append(Piece(text[start:cut] + between, "filler"))
        pieces.append(Piece(facts.state(rng.choice(pools().training.facts), fact) + between, "fact", (fact,)))
        start = cut
    return [*pieces, Piece(text[start:] + "\n", "filler"), *questions]


def lists(rng: Random, characters: int, chat: bool, material: Material) -> list[Piece]:
    """Lists drawn from the same few items, none twice in one: copying has to know what was said already."""
    used: set[str] = set()
    for _ in range(rng.randint(4, 30)):
        make = material.compound if rng.random() < 0.5 else lambda rng: rng.choice(pools().herbs)
        facts.draw(rng, make, False, used)
    items, dosed, pieces = sorted(used), rng.random() < 0.6, _opening(chat)
    opening, between = rng.choice(LIST_OPENINGS), rng.choice(LIST_BREAKS)
    while length(pieces) < characters:
        some = rng.sample(items, rng.randint(3, min(MOST_LISTED, len(items))))
        text = between.join(f"{item}{rng.randint(1, 12) * 3}克" if dosed else item for item in some)
        pieces += [Piece(opening, "question"), *(turn_to_answer() if chat else []), Piece(text, "listed")]
        pieces += end_of_turn() if chat else [Piece("。\n", "close")]
    return pieces


def _opening(chat: bool) -> list[Piece]:
    return [Piece("<|im_start|>user\n", "control")] if chat else []


def chat_pieces(messages: list[dict]) -> list[Piece]:
    """Return a dialogue in Qwen3's chat format, thinking off: the block opens the last answer and no other."""
    pieces: list[Piece] = []
    for index, message in enumerate(messages):
        last = index == len(messages) - 1
        pieces.append(Piece(f"<|im_start|>{message['role']}\n", "control"))
        pieces += [Piece(THINK, "none")] if last and message["role"] == "assistant" else []
        pieces += [Piece(message["content"], "spoken"), Piece("<|im_end|>", "spoken"), Piece("\n", "control")]
    return pieces


def repeats(rng: Random, tokens: int, natural: Callable[[int], list[int]], top: int, newline: int) -> tuple[list, list]:
    """Token spans of chance or of text that come again later, whole or in part: what induction heads learn from.

    Returns token ids below ``top`` and the kind of each, ``repeat`` where the past tells the token.
    """
    ids: list[int] = []
    kinds: list[str] = []
    seen: list[list[int]] = []
    pool = [rng.randrange(top) for _ in range(rng.choice([20, 60, 300, 3000]))]
    while len(ids) < tokens:
        if seen and rng.random() < 0.6:
            span = rng.choice(seen)
            span = span[rng.randrange(max(1, len(span) - 4)) :] if rng.random() < 0.5 else span
            kinds += ["none", "fresh", *["repeat"] * (len(span) - 2)][: len(span)]
        else:
            size = rng.randint(4, 40)
            span = natural(size) if rng.random() < 0.5 else [rng.choice(pool) for _ in range(size)]
            seen.append(span)
            kinds += ["fresh"] * len(span)
        ids += span
        if rng.random() < 0.7:
            ids.append(newline)
            kinds.append("fresh")
    return ids, kinds


WRITERS = {"pairs": pairs, "records": records, "needles": needles, "lists": lists}
