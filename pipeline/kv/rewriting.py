"""The part of a recipe that lets entries be computed again: a summary of evicted text, survivors prefilled anew."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.kv.precision import KvType
from pipeline.schema import Section

Share = Annotated[float, Field(gt=0, le=1)]
Multiple = Annotated[float, Field(gt=0)]

FIRST = 256


class Summary(Section):
    """What stands for evicted text: written by the model, drawn from the text, or nothing, its room left empty.

    Numbers of tokens are counts, or multiples of the budget.
    """

    mode: Literal["model", "extractive", "none"]
    tokens: Annotated[int, Field(ge=0)] | Share  # most entries; they count within the budget
    after: Annotated[int, Field(gt=0)] | Multiple  # evicted tokens that make a new one due, in the long run
    first: Annotated[int, Field(gt=0)] = FIRST  # that make the first due, if fewer; then 4 times as many each
    reads: Annotated[int, Field(gt=0)] | Multiple | None = None  # of these, in sentences that weigh most; null: all
    reinsert: Literal["rebuild", "shift"] = "rebuild"  # compute newer entries again behind it, or move them
    precision: KvType = "q4_0"  # of the context that it is written in, where model and engine allow it

    def most(self, budget: int) -> int:
        """Return its most entries under a budget."""
        return _of(self.tokens, budget)

    def due(self, budget: int) -> int:
        """Return how many evicted tokens make a new one due."""
        return max(1, _of(self.after, budget))

    def read(self, budget: int) -> int | None:
        """Return how many evicted tokens the model sees at most; None if all."""
        return None if self.reads is None else max(1, _of(self.reads, budget))


class Rewriting(Section):
    """What a policy may compute again: one set of tokens for all layers and heads, at consecutive positions."""

    summary: Summary | None = None
    rebuild: Literal["cells", "reprefill"] = "cells"  # after a cut: keep what is stored, or compute survivors again

    @model_validator(mode="after")
    def _what_is_computed_again_is_text(self) -> Rewriting:
        if self.summary is None and self.rebuild == "cells":
            return self
        if self.summary and self.rebuild == "reprefill":
            raise ValueError("a summary is put back by its own `reinsert`; take `rebuild` out")
        if not self.online or self.prefill or self.positions != "compact":
            raise ValueError("summary and `rebuild: reprefill` need `online: true`, compact positions, no `prefill`")
        if self.evicted == "host":
            raise ValueError("evicted entries either live on or are computed anew; take `evicted: host` out")
        cut = self.decode
        equal = cut.sizes.shape == "uniform" and not cut.skip and not cut.drop
        if not equal or (cut.score and cut.score.share != "model"):
            raise ValueError("summary and `rebuild: reprefill` need layers of one size and `share: model`")
        if cut.score and cut.score.by.signal == "attention_so_far":
            raise ValueError("attention so far is lost where entries are computed again; take another signal")
        return self

    @property
    def rewrites(self) -> bool:
        """Whether entries are computed again, so that they are not those of one pass over the text."""
        return self.rebuild == "reprefill" or bool(self.summary and self.summary.mode != "none")

    def reserved(self, budget: int) -> str:
        """Say what a summary takes of a budget, as the end of a message."""
        return f"; the summary takes {self.summary.most(budget)} of {budget}" if self.summary else ""

    def room_for_text(self, budget: int) -> int:
        """Return the entries of a budget that a summary leaves to the text."""
        return budget - (self.summary.most(budget) if self.summary else 0)


def _of(value: int | float, budget: int) -> int:
    return int(value * budget) if isinstance(value, float) else value
