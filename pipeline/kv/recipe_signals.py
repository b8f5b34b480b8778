"""The signals that a recipe may rank entries by, as parts of its schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema import Section

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class KeyNorm(Section):
    """Short keys stay; ``high`` keeps long ones, as a control."""

    signal: Literal["key_norm"]
    high: bool = False


class Chance(Section):
    """Drawn by lot, as a control."""

    signal: Literal["random"]
    seed: Count = 0


class Window(Section):
    """Attention of the newest queries: a count of them, or a share of the entries and one more."""

    signal: Literal["attention"]
    queries: Positive | Share
    over_queries: Literal["sum", "rising_mean"] = "sum"
    rising_to: Annotated[float, Field(ge=1)] = 1.0  # weight of the newest query in a rising mean, the oldest's being 1


class SoFar(Section):
    """Attention of every query since an entry came: its sum, its mean, or how often it was above an even share."""

    signal: Literal["attention_so_far"]
    gather: Literal["sums", "means", "hits"]
    history: Positive | None = None  # hits alone: rows that count

    @model_validator(mode="after")
    def _hits_have_a_history(self) -> SoFar:
        if (self.history is None) == (self.gather == "hits"):
            raise ValueError("`gather: hits` needs a history, and no other takes one")
        return self


class Logit(Section):
    """q.k of the newest query, without scale or softmax."""

    signal: Literal["logit"]


class Similarity(Section):
    """Cosine of blocks' mean keys with the mean of the newest queries, both un-rotated."""

    signal: Literal["similarity"]
    queries: Positive
    block: Positive


class Representatives(Section):
    """q.k of the newest queries' mean with the mean of each block's most attended keys."""

    signal: Literal["representatives"]
    queries: Positive
    block: Positive
    keys: Positive = 4  # of a block, so many stand for it

    @model_validator(mode="after")
    def _no_more_keys_than_a_block_has(self) -> Representatives:
        if self.keys > self.block:
            raise ValueError(f"{self.keys} keys cannot stand for a block of {self.block}")
        return self
