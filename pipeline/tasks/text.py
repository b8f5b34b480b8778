"""Continued text: test dialogues, rendered as the model knows them, joined into documents of a given length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def documents(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], tokens: int, count: int
) -> list[list[int]]:
    """Return ``count`` documents of ``tokens`` ids each; every document starts with a dialogue of its own.

    Raises UserError, with the number of ids there are, if the dialogues do not suffice.
    """
    rendered = _rendered(tokenizer, dialogues)
    found = [document for _ in range(count) if (document := _document(rendered, tokens))]
    if len(found) < count:
        there = sum(map(len, _rendered(tokenizer, dialogues)))
        raise UserError(
            f"the test dialogues have {there} tokens, enough for {len(found)} documents of {tokens} tokens, "
            f"and {count} are needed; lower bench.depths or bench.repetitions, or take more test dialogues"
        )
    return found


def _rendered(tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]]) -> Iterator[list[int]]:
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]  # stands between two turns
    for messages in dialogues:
        prompt, answer = prompts.example_ids(tokenizer, messages)
        yield [*prompt, *answer, *newline]


def _document(rendered: Iterator[list[int]], tokens: int) -> list[int] | None:
    """Join dialogues until there are ``tokens`` ids, and drop what is beyond; None if they run out."""
    ids: list[int] = []
    for dialogue in rendered:
        ids += dialogue
        if len(ids) >= tokens:
            return ids[:tokens]
    return None
