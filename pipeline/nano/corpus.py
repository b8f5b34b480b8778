"""Corpus folder -> documents: build/nano/corpus/{train,held_out}/<source>.jsonl, a document a line.

The folder is not part of the product; the recipe names its files, and the card their origin and licence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from pipeline.errors import UserError
from pipeline.io import atomic_dir, read_jsonl, write_jsonl

log = logging.getLogger(__name__)

CHAPTER_CHARACTERS = 600
PAGE_CHARACTERS = 1800
SPEAKERS = (("问：", "答："), ("患者：", "医生："), ("问题：", "回答："))
Turns = list[tuple[str, str]]


def main(recipe: dict, folder: Path) -> None:
    """Read every source of the recipe below ``folder`` and split its documents by their hash."""
    sources = recipe["corpus"]["sources"]
    files = [folder / name for source in sources.values() for name in source["files"]]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(*(f"{path}: no such file; recipe.yaml names it under corpus.sources" for path in missing))
    with atomic_dir(Path(recipe["build"]) / "corpus") as out:
        for name, source in sources.items():
            documents = [d for file in source["files"] for d in READERS[source["reader"]](folder / file)]
            kept = [d for d in documents if not is_held_out(d["text"], recipe["corpus"]["held_out_percent"])]
            test = [d for d in documents if is_held_out(d["text"], recipe["corpus"]["held_out_percent"])]
            write_jsonl(out / "train" / f"{name}.jsonl", kept)
            write_jsonl(out / "held_out" / f"{name}.jsonl", test)
            characters = sum(len(d["text"]) for d in kept)
            log.info("%s: %d documents, %d characters; %d held out", name, len(kept), characters, len(test))


def load(recipe: dict, split: str) -> dict[str, list[dict]]:
    """Return the documents of a split, ``train`` or ``held_out``, by source."""
    folder = Path(recipe["build"]) / "corpus" / split
    if not folder.is_dir():
        raise UserError(f"{folder}: not there; run `python -m pipeline.nano corpus --corpus FOLDER` first")
    return {name: list(read_jsonl(folder / f"{name}.jsonl")) for name in recipe["corpus"]["sources"]}


def is_held_out(text: str, percent: int) -> bool:
    """Tell by a hash of its text whether a document is kept out of training."""
    return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:4]) % 100 < percent


def dialogues(path: Path) -> Iterator[dict]:
    """Yield question-answer dialogues as text and as chat messages, from any of the usual JSON Lines schemas."""
    for line in path.read_text(encoding="utf-8").splitlines():
        turns = [(role, clean(text)) for role, text in turns_of(json.loads(line))]
        messages = [{"role": role, "content": text} for role, text in turns if text]
        yield {"text": spoken(turns), "messages": messages}


def turns_of(record: dict) -> Turns:
    """Return (role, text) pairs of one record: Alpaca with history, ShareGPT, or role and content."""
    if "conversations" in record:
        return [("user" if t["from"] == "human" else "assistant", t["value"]) for t in record["conversations"]]
    if "conversation" in record:
        return [(t["role"], t["content"]) for t in record["conversation"]]
    past = [turn for pair in record.get("history") or [] for turn in zip(("user", "assistant"), pair, strict=True)]
    question = "\n".join(part for part in (record["instruction"], record.get("input")) if part)
    return [*past, ("user", question), ("assistant", record["output"])]


def spoken(turns: Turns) -> str:
    """Return a dialogue in plain form, with one of a few ways to name the speakers, chosen by its text."""
    user, assistant = Random(turns[0][1]).choice(SPEAKERS)
    return "\n".join((user if role == "user" else assistant) + text for role, text in turns)


def classics(path: Path) -> Iterator[dict]:
    """Yield pieces of a classic, hard line breaks joined, of some hundred characters, cut at a paragraph's end."""
    text = re.sub(r"<(篇名|目录)>|^(书名|作者|朝代|年份|属性)：", "", path.read_text(encoding="utf-8"), flags=re.M)
    text = re.sub(r"(?<=[^\n。！？：])\n(?=[^\n])", "", re.sub(r"[ \u3000]+", "", text))
    yield from pieces(re.sub(r"\n{2,}", "\n", text).split("\n"), "\n", CHAPTER_CHARACTERS)


def book(path: Path) -> Iterator[dict]:
    """Yield pages of an English book, hard line breaks joined, cut at a paragraph's end."""
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    yield from pieces([" ".join(paragraph.split()) for paragraph in paragraphs], "\n", PAGE_CHARACTERS)


def pieces(paragraphs: list[str], glue: str, characters: int) -> Iterator[dict]:
    """Yield documents of consecutive paragraphs that reach ``characters``."""
    held: list[str] = []
    for paragraph in paragraphs:
        held += [clean(paragraph)] if paragraph.strip() else []
        if sum(map(len, held)) >= characters:
            yield {"text": glue.join(held)}
            held = []
    if held:
        yield {"text": glue.join(held)}


def clean(text: str) -> str:
    """Return text stripped and without anything that looks like a control token."""
    return text.strip().replace("<|", "<").replace("|>", ">")


READERS = {"dialogues": dialogues, "classics": classics, "book": book}
