"""Documents -> rows of token ids with positions, targets and loss weights: what one optimiser step sees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from pipeline.nano import documents
from pipeline.nano.tokenizer import END_OF_TEXT, PLAIN_ADDED_TOKENS, SPECIAL_TOKENS
from pipeline.tasks.facts import Fact

MOST_GAPS = 5
SHOWN = ("natural", "answer", "repeat")  # kinds whose losses are reported
LINKS = ("copy", "recall", "name", "field")


class Token(NamedTuple):
    """A token, how it counts in the loss, and its role in a fact: the end of a name or field, the start of a value."""

    id: int
    kind: str
    role: str | None = None
    fact: Fact | None = None


@dataclass(frozen=True)
class Batch:
    """One batch; every tensor is [rows, length] unless told otherwise."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    links: Tensor  # [rows, length, kinds of guided head]: the position to look at, or -1
    kinds: dict[str, Tensor]  # which targets are natural text, recall answers, repeated spans
    chat_tokens: int  # of consultations in chat format


class NaturalText:
    """The training documents, tokenised, each source in passes over its shuffled documents."""

    def __init__(self, tokenizer: Tokenizer, sources: dict[str, list[dict]], shares: dict[str, float], seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        self.sources = sources
        self.ids = {
            name: [e.ids for e in tokenizer.encode_batch([d["text"] for d in docs], add_special_tokens=False)]
            for name, docs in sources.items()
        }
        self.tokens = {name: sum(map(len, ids)) for name, ids in self.ids.items()}
        self.odds = [shares[name] * len(ids) / self.tokens[name] for name, ids in self.ids.items()]
        self.drawn = dict.fromkeys(sources, 0)
        self._orders: dict[tuple[str, int], list[int]] = {}

    def draw(self, rng: Random) -> tuple[str, int]:
        """Return the source and the index of the next document."""
        name = rng.choices(list(self.sources), self.odds)[0]
        epoch, place = divmod(self.drawn[name], len(self.ids[name]))
        self.drawn[name] += 1
        return name, self._order(name, epoch)[place]

    def _order(self, name: str, epoch: int) -> list[int]:
        if (name, epoch) not in self._orders:
            order = list(range(len(self.ids[name])))
            Random(f"{self.seed}/{name}/{epoch}").shuffle(order)
            self._orders[name, epoch] = order
        return self._orders[name, epoch]

    def document(self, rng: Random) -> list[int]:
        """Return the tokens of the next document."""
        name, index = self.draw(rng)
        return self.ids[name][index]

    def dialogue(self, rng: Random) -> list[dict]:
        """Return the messages of the next document that is a dialogue."""
        while True:
            name, index = self.draw(rng)
            if messages := self.sources[name][index].get("messages"):
                return messages

    def text(self, rng: Random, characters: int) -> str:
        """Return so many characters of running text."""
        text = ""
        while len(text) < characters:
            name, index = self.draw(rng)
            text += self.sources[name][index]["text"] + "\n"
        return text[:characters]

    def span(self, rng: Random, size: int) -> list[int]:
        """Return up to ``size`` tokens from anywhere; not counted as a pass over the text."""
        name = rng.choice(list(self.ids))
        ids = rng.choice(self.ids[name])
        start = rng.randrange(max(1, len(ids) - size))
        return ids[start : start + size]


class RowWriter:
    """Writes training rows from natural and synthetic documents, as the recipe mixes them."""

    def __init__(self, tokenizer: Tokenizer, natural: NaturalText, settings: dict, seed: int):
        self.tokenizer, self.natural, self.seed = tokenizer, natural, seed
        self.weights, self.first_token = settings["weights"], settings["first_token"]
        self.varied_words = settings["varied_words"]
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.break_ids = tokenizer.encode("\n\n").ids
        self.newline = tokenizer.encode("\n").ids[0]
        self.top = tokenizer.get_vocab_size() - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS)
        vocabulary = {tokenizer.decode([index]) for index in range(self.top)}
        texts = (doc["text"] for docs in natural.sources.values() for doc in docs)
        # Characters of the text as well: the rarer ones are two or three tokens each.
        words = vocabulary.union(*map(set, texts))
        self.words = sorted(word for word in words if re.fullmatch(r"[\u4e00-\u9fff]{1,3}", word))
        self.characters_per_token = dict.fromkeys(documents.WRITERS, 1.2)

    def batch(self, step: int, phase: dict) -> Batch:
        """Return the batch of a step; the same step and passes over the text give the same batch."""
        rng = Random(f"{self.seed}/{step}")
        length = phase["length"]
        rows = [self.row(rng, length, phase["mix"]) for _ in range(phase["rows"])]
        ids = torch.tensor([[token.id for token in row] for row in rows])
        kinds = [[token.kind for token in row[1:]] for row in rows]
        return Batch(
            ids=ids[:, :-1].contiguous(),
            positions=torch.tensor([self.positions(rng, length, phase) for _ in rows]),
            targets=ids[:, 1:].contiguous(),
            weights=torch.tensor([[self.weights[kind] for kind in row] for row in kinds]),
            links=torch.tensor([list(zip(*links(row).values(), strict=True)) for row in rows]),
            kinds={shown: torch.tensor([[kind == shown for kind in row] for row in kinds]) for shown in SHOWN},
            chat_tokens=sum(kind == "spoken" for row in kinds for kind in row),
        )

    def row(self, rng: Random, length: int, mix: dict[str, float]) -> list[Token]:
        """Return ``length + 1`` tokens with the kind of each: one document of the drawn kind, then natural ones."""
        kind = rng.choices(list(mix), list(mix.values()))[0]
        start = rng.choices(list(self.first_token), list(self.first_token.values()))[0]
        row = [Token(self.end_of_text, "none")] if start == "endoftext" else []
        row += self.opening(rng, kind, length, chat=start == "chat")
        while len(row) <= length:
            row += [Token(id, "filler") for id in self.break_ids] if len(row) > 1 else []
            row += [Token(id, "natural") for id in self.natural.document(rng)]
        return row[: length + 1]

    def opening(self, rng: Random, kind: str, length: int, chat: bool) -> list[Token]:
        """Return the tokens of the document that a row begins with."""
        if kind == "repeat":
            ids, kinds = documents.repeats(rng, length, lambda n: self.natural.span(rng, n), self.top, self.newline)
            return list(map(Token, ids, kinds))
        if kind == "natural":
            return self.encode(documents.chat_pieces(self.natural.dialogue(rng))) if chat else []
        characters = int(length * 0.95 * self.characters_per_token[kind])
        material = documents.Material(lambda n: self.natural.text(rng, n), self.words, self.varied_words)
        pieces = documents.WRITERS[kind](rng, characters, chat, material)
        row = self.encode(pieces)
        ratio = documents.length(pieces) / len(row)
        self.characters_per_token[kind] += 0.05 * (ratio - self.characters_per_token[kind])
        return row

    def encode(self, pieces: list[documents.Piece]) -> list[Token]:
        """Return the tokens of pieces, each piece tokenised on its own."""
        encoded = self.tokenizer.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
        return [token for piece, e in zip(pieces, encoded, strict=True) for token in tokens_of(piece, e)]

    def positions(self, rng: Random, length: int, phase: dict) -> list[int]:
        """Return rotary positions 0.. with, in a share of rows, random gaps (PoSE, Zhu et al., 2023)."""
        positions = list(range(length))
        if rng.random() >= phase["gaps"]:
            return positions
        room = rng.randint(0, phase["gap_length"] - length)
        count = rng.randint(1, MOST_GAPS)
        cuts = sorted(rng.randrange(1, length) for _ in range(count))
        marks = [0, *sorted(rng.randint(0, room) for _ in range(count - 1)), room]
        for cut, low, high in zip(cuts, marks, marks[1:], strict=False):
            positions[cut:] = [p + high - low for p in positions[cut:]]
        return positions


def tokens_of(piece: documents.Piece, encoded: Encoding) -> list[Token]:
    """Return the tokens of a piece with the roles of those that end a name or a field, or begin a stated value."""
    roles: dict[int, tuple[str, Fact]] = {}
    for fact in piece.told:
        field = piece.text.index(fact.field)
        marks = {"name": piece.text.index(fact.person) + len(fact.person) - 1, "field": field + len(fact.field) - 1}
        marks |= {"value": piece.text.index(fact.value, field)} if piece.kind == "fact" else {}
        roles |= {encoded.char_to_token(place): (role, fact) for role, place in marks.items()}
    return [Token(id, piece.kind, *roles.get(place, ())) for place, id in enumerate(encoded.ids)]


def links(row: list[Token]) -> dict[str, list[int]]:
    """Return, for each token but the last and each kind of guided head, the position to look at, or -1.

    ``copy``: where the past holds the next token of a repeat or of a begun answer; ``recall``: where the value of an
    answer that begins next was stated; ``name`` and ``field``: whose value begins here or is asked for, the last said.
    """
    ids = [token.id for token in row]
    found: dict[str, list[int]] = {kind: [-1] * (len(row) - 1) for kind in LINKS}
    seen: dict[tuple[int, int], int] = {}
    stated: dict[Fact | None, int] = {}
    last, source = {"name": -1, "field": -1}, -1
    openings = {start - 1: end for start, end in answer_spans(row)}
    for place, (token, following) in enumerate(pairwise(row)):
        if token.role in last:
            last[token.role] = place
        if token.role == "value":
            stated[token.fact] = place
        if token.role == "value" or place in openings:
            found["name"][place], found["field"][place] = last["name"], last["field"]
        if place in openings:
            answer = ids[place + 1 : openings[place]]
            source = stated.get(row[last["field"]].fact, -1)
            # Within its sentence a value may be other tokens than as an answer: then there is nothing to copy.
            source = source if source >= 0 and ids[source : source + len(answer)] == answer else -1
            found["recall"][place] = source
        elif following.kind == "answer":
            source += source >= 0
            found["copy"][place] = source
        elif following.kind == "repeat":
            found["copy"][place] = seen.get((token.id, following.id), -1)
        seen[token.id, following.id] = place + 1
    return found


def answer_spans(row: list[Token]) -> list[tuple[int, int]]:
    """Return where each answer begins and ends."""
    runs = [(kind, list(run)) for kind, run in groupby(range(len(row)), key=lambda place: row[place].kind)]
    return [(run[0], run[-1] + 1) for kind, run in runs if kind == "answer" and run[0]]
