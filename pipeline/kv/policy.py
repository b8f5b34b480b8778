"""A KV-cache policy as a value: which entries stay, when the others go, how the survivors are placed and stored.

Entries are counted in cache order, oldest first. A policy knows nothing of models or engines; what it decides are
counts and ranges of entries. ``recipes/kv/<name>.yaml`` spells one out, up to the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline import recipes
from pipeline.errors import ConfigError
from pipeline.kv.precision import KvType, Precision
from pipeline.schema import Section

Positions = Literal["original", "compact"]


@dataclass(frozen=True)
class Segments:
    """The parts of the cache that stay: the first ``sinks``, the last ``recent``, and the middle if ``whole``."""

    sinks: int = 0
    recent: int = 0
    whole: bool = False

    @property
    def size(self) -> int | None:
        """Entries that stay at most; None if all do."""
        return None if self.whole else self.sinks + self.recent

    def outside(self, live: int) -> range:
        """Return the entries, of ``live`` in the cache, that belong to no segment."""
        return range(0) if self.whole else range(self.sinks, max(self.sinks, live - self.recent))


@dataclass(frozen=True)
class Never:
    """The trigger of a policy that evicts nothing."""

    def room(self, live: int) -> int | None:
        """Return how many tokens may be appended until the cut is due; None if it never is."""
        return None


@dataclass(frozen=True)
class Over:
    """Cut once more than ``limit + slack`` entries live, after the attention that saw them, down to ``limit``."""

    limit: int
    slack: int = 0

    def room(self, live: int) -> int | None:
        """Return how many tokens may be appended until the cut is due; None if it never is."""
        return max(0, self.limit + self.slack + 1 - live)


@dataclass(frozen=True)
class Policy:
    """Segments, trigger, positions and precision. What is evicted is dropped.

    ``original`` positions leave survivors where they are; ``compact`` ones are numbered anew from 0 after each cut,
    so that positions never exceed the budget and its slack.
    """

    segments: Segments
    trigger: Never | Over
    positions: Positions
    precision: Precision

    def room(self, live: int) -> int | None:
        """Return how many tokens may be appended to ``live`` entries until a cut is due; None if it never is."""
        return self.trigger.room(live)

    def evicted(self, live: int) -> range:
        """Return the entries to drop now that ``live`` are in the cache, empty unless the cut is due."""
        return self.segments.outside(live) if self.room(live) == 0 else range(0)

    def most_entries(self, tokens: int) -> int:
        """Return the most entries that live at once while ``tokens`` tokens are fed."""
        room = self.room(0)
        return tokens if room is None else min(tokens, room)


class SegmentsRecipe(Section):
    """Segment sizes in entries; ``rest`` takes what the budget leaves, ``all`` needs no budget."""

    sinks: Annotated[int, Field(ge=0)] = 0
    recent: Literal["rest", "all"]

    @model_validator(mode="after")
    def _sinks_need_a_budget(self) -> SegmentsRecipe:
        if self.sinks and self.recent == "all":
            raise ValueError("sinks are of no use where everything stays; take `sinks` out or write `recent: rest`")
        return self


class PrecisionRecipe(Section):
    """Storage types of keys and values."""

    k: KvType = "f16"
    v: KvType = "f16"


class PolicyRecipe(Section):
    """recipes/kv/<name>.yaml: a policy up to its budget, and where it comes from."""

    paper: str
    segments: SegmentsRecipe
    positions: Positions = "original"
    precision: PrecisionRecipe = PrecisionRecipe()

    @property
    def budgeted(self) -> bool:
        """Whether the policy needs a budget."""
        return self.segments.recent == "rest"

    @property
    def composition(self) -> str:
        """Say the policy in one line, in the terms of the algebra."""
        sinks = f"sinks({self.segments.sinks}) + " if self.segments.sinks else ""
        kept = f"{sinks}recent(rest of budget)" if self.budgeted else "everything"
        when = "over(budget, slack) -> drop" if self.budgeted else "never"
        types = self.precision.k if self.precision.k == self.precision.v else f"{self.precision.k}/{self.precision.v}"
        return f"{kept} | {when} | {self.positions} positions | {types}"

    @property
    def types(self) -> Precision:
        """The storage types as a value of the algebra."""
        return Precision(self.precision.k, self.precision.v)

    def problem(self, budget: int) -> str | None:
        """Return what is wrong with a budget for this policy, or None."""
        if self.budgeted and budget <= self.segments.sinks:
            return f"{budget} entries, but its {self.segments.sinks} sinks and the newest token need more"
        return None

    def policy(self, budget: int | None, slack: int) -> Policy:
        """Return the policy at a budget (entries a layer and head may hold after a cut); None where it needs none."""
        if not self.budgeted:
            return Policy(Segments(whole=True), Never(), self.positions, self.types)
        if problem := self.problem(budget):
            raise ConfigError(problem)
        segments = Segments(self.segments.sinks, budget - self.segments.sinks)
        return Policy(segments, Over(budget, slack), self.positions, self.types)


def read(name: str) -> PolicyRecipe:
    """Read the recipe of a policy."""
    return recipes.read("kv", name, PolicyRecipe)
