"""Sentences of tokenised text, Chinese and Latin, and the choice of those that weigh most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import prompts
from pipeline.engines.summary.ledger import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = tuple("。！？；!?…")
MOST_BYTES = 4  # of a character
CLOSING = " \"'”’」』）)】]"


@dataclass(frozen=True)
class Sentence:
    """A sentence's tokens, the mean of their weights, and whether neither its beginning nor its end is missing."""

    ids: tuple[int, ...]
    weight: float
    whole: bool


def best(words: PreTrainedTokenizerBase, passages: Sequence[Passage], most: int) -> tuple[int, ...]:
    """Return the sentences that weigh most, at most ``most`` tokens, in text order.

    Whole ones come before torn ones. Sentences that no longer fit make way for the next; if none fits, the first one's
    beginning stays. Of equals the newer stays.
    """
    found = [sentence for passage in passages for sentence in split(words, passage)]
    keys = [(sentence.whole, sentence.weight, index) for index, sentence in enumerate(found)]
    ranks = [index for _, _, index in sorted(keys, reverse=True)]
    chosen, left = [], most
    for index in ranks:
        if len(found[index].ids) <= left:
            chosen.append(index)
            left -= len(found[index].ids)
    if not chosen:
        return found[ranks[0]].ids[:most] if found else ()
    return tuple(token for index in sorted(chosen) for token in found[index].ids)


def head(words: PreTrainedTokenizerBase, ids: Sequence[int], most: int) -> list[int]:
    """Return the whole sentences that a text begins with, at most ``most`` tokens; none if not one fits."""
    texts = _texts(words, ids)
    stops = [at for at, text in enumerate(texts[:most], 1) if ends(text, texts[at] if at < len(texts) else "")]
    return list(ids[: stops[-1]]) if stops else []


def split(words: PreTrainedTokenizerBase, passage: Passage) -> Iterator[Sentence]:
    """Yield a passage's sentences; control tokens and roles end one and are left out.

    Gaps in the text tear one, and so do a passage's ends, since eviction asks for no sentences; a summary's do not.
    """
    controls, start = set(words.get_added_vocab().values()), words.convert_tokens_to_ids(prompts.START_OF_TURN)
    texts = _texts(words, passage.ids)
    summary = bool(passage.origins) and passage.origins[0] < 0
    first, role, begun = 0, False, summary
    for index, token in enumerate(passage.ids):
        gap = index > 0 and passage.origins[index] != passage.origins[index - 1] + 1
        if token in controls or gap:
            yield from _sentence(passage, texts, range(first, index), begun and not gap)
            first, role, begun = index, token == start, False
        if token in controls or role:  # a role ends with its line
            first, role, begun = index + 1, role and "\n" not in texts[index], True
        elif ends(texts[index], texts[index + 1] if index + 1 < len(texts) else ""):
            yield from _sentence(passage, texts, range(first, index + 1), begun)
            first, begun = index + 1, True
    yield from _sentence(passage, texts, range(first, len(passage)), begun and summary)


def _texts(words: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return each token's text; a character of several tokens is its last one's."""
    texts: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = words.decode(pending)
        broken = text.endswith(prompts.UNREADABLE) and len(pending) < MOST_BYTES
        texts.append("" if broken else text)
        pending = pending if broken else []
    return texts


def ends(text: str, following: str) -> bool:
    """Tell whether a token's text ends a sentence; a full stop within a number or a name does not."""
    bare = text.rstrip(CLOSING)
    if bare.endswith("."):
        return not (following[:1].isascii() and following[:1].isalnum())
    return "\n" in text or bare.endswith(ENDS)


def _sentence(passage: Passage, texts: Sequence[str], span: range, whole: bool) -> Iterator[Sentence]:
    """Yield a span's tokens if there is something to read in them."""
    if "".join(texts[span.start : span.stop]).strip():
        weight = sum(passage.weights[span.start : span.stop]) / len(span)
        yield Sentence(passage.ids[span.start : span.stop], weight, whole)
