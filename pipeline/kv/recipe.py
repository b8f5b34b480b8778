"""recipes/kv/<name>.yaml: a policy up to its budget, checked without loading torch, and turned into its value.

A new policy made of parts that exist is a new file there and nothing else. The schema spells the algebra out; the
composition of a recipe is said in one line by words.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipeline import recipes
from pipeline.errors import ConfigError
from pipeline.kv.precision import KvType, Precision
from pipeline.kv.recipe_signals import (
    Chance,
    Count,
    KeyNorm,
    Logit,
    Positive,
    Representatives,
    Share,
    Similarity,
    SoFar,
    Window,
)
from pipeline.kv.rewriting import Rewriting
from pipeline.schema import Section

if TYPE_CHECKING:
    from pipeline.kv.policy import Policy


class Keep(Section):
    """Entries that no score touches: counts, or for the newest a share of what stays; ``rest`` leaves no middle."""

    sinks: Count = 0
    recent: Count | Annotated[float, Field(ge=0, lt=1)] | Literal["rest"] = 0


class PoolOf(Section):
    """A sliding mean or maximum over the scores; ``padded`` counts zeros beyond the ends."""

    kind: Literal["average", "maximum"]
    width: Positive
    padded: bool = True

    @model_validator(mode="after")
    def _width_is_odd(self) -> PoolOf:
        if self.width % 2 == 0:
            raise ValueError("an even width has no middle; take an odd one")
        return self


class Score(Section):
    """How candidates are ranked, and who keeps one set: each KV head, all heads of a layer, the whole model."""

    by: Annotated[
        KeyNorm | Chance | Window | SoFar | Logit | Similarity | Representatives, Field(discriminator="signal")
    ]
    pool: PoolOf | None = None
    blocks: Positive | None = None  # entries that score as one
    over_group: Literal["mean", "sum", "max"] = "mean"  # over the query heads of a KV head
    share: Literal["head", "layer", "model"] = "head"
    select: Literal["top", "cyclic_pairs"] = "top"

    @model_validator(mode="after")
    def _one_smoothing(self) -> Score:
        if self.pool and self.blocks:
            raise ValueError("pool and blocks both smooth the scores; take one")
        return self


class UniformSizes(Section):
    """The budget for every layer."""

    shape: Literal["uniform"]


class RatioSizes(Section):
    """Above the budget a share of it stays."""

    shape: Literal["ratio"]
    keep: Share


class PyramidSizes(Section):
    """PyramidKV's arithmetic."""

    shape: Literal["pyramid"]
    beta: Annotated[int, Field(gt=1)] = 20


class DecaySizes(Section):
    """A factor from layer to layer, down to a least size."""

    shape: Literal["decay"]
    factor: Share
    least: Positive


class LinearSizes(Section):
    """From the first layer to the last, which holds ``last`` times the budget."""

    shape: Literal["linear"]
    last: Annotated[float, Field(gt=0, lt=2)]


class FallingSizes(Section):
    """Between two limits the share that stays falls; limits and target are multiples of the budget."""

    shape: Literal["falling"]
    hard: Annotated[float, Field(gt=1)]
    target: Annotated[float, Field(gt=0)]
    high: Share
    low: Share


Sizes = Annotated[
    UniformSizes | RatioSizes | PyramidSizes | DecaySizes | LinearSizes | FallingSizes, Field(discriminator="shape")
]


class CutRecipe(Section):
    """One rule of eviction."""

    keep: Keep
    score: Score | None = None
    sizes: Sizes = UniformSizes(shape="uniform")
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a layer's size that a cut drops besides
    skip: tuple[Count, ...] = ()  # layers that keep everything

    @model_validator(mode="after")
    def _middle_or_rest(self) -> CutRecipe:
        if (self.score is None) != (self.keep.recent == "rest"):
            raise ValueError("write `recent: rest` without a score, and a number with one")
        if self.score and self.score.share == "model" and (self.skip or self.sizes.shape not in ("uniform", "ratio")):
            raise ValueError("one set for the model needs layers of one size: take `skip` out and `sizes: uniform`")
        if self.drop and self.sizes.shape not in ("uniform", "linear"):
            raise ValueError("drop goes with sizes `uniform` or `linear`")
        return self


class Narrow(Section):
    """Tokens of the prompt that later layers (hidden) or a second reading (input) never see."""

    scope: Literal["hidden", "input"]
    depth: Share | None = None  # once, at this share of the layers; null: after every layer
    tokens: Annotated[float, Field(ge=0, lt=1)] | None = None  # share that goes on, the budget at least
    keep: Keep = Keep()
    score: Score

    @model_validator(mode="after")
    def _once_or_always(self) -> Narrow:
        if self.keep.recent == "rest":
            raise ValueError("`recent: rest` leaves nothing to rank")
        if self.scope == "input" and self.depth is None:
            raise ValueError("scope `input` reads again from one layer on; give its depth")
        if self.depth is not None and self.tokens is None:
            raise ValueError("give `tokens`, the share that goes on; 0 takes the budget")
        return self


class Clamped(Section):
    """No entry stands farther away than this; 1.0 is the budget."""

    clamped: Share


class Types(Section):
    """Storage types of keys and values."""

    k: KvType = "f16"
    v: KvType = "f16"


class PolicyRecipe(Rewriting):
    """A policy up to its budget, and where it comes from."""

    paper: str
    published: tuple[str, ...] = ()  # figures of the source, as it states them
    prefill: CutRecipe | None = None
    decode: CutRecipe | None = None
    online: bool = False
    narrow: Narrow | None = None
    positions: Literal["original", "compact"] | Clamped = "original"
    precision: Types = Types()
    slack: Count | Annotated[float, Field(gt=0, lt=1)] | None = None  # tokens between cuts, or a share of the budget
    evicted: Literal["dropped", "host"] = "dropped"  # what becomes of entries that go: on the host they may come back

    @model_validator(mode="after")
    def _online_needs_a_rule(self) -> PolicyRecipe:
        if self.online and not self.decode:
            raise ValueError("online: true lets `decode` act on the prompt, and there is no `decode`")
        if self.online and self.narrow:
            raise ValueError("a prompt is either fed online or narrowed")
        if self._sums() and self.narrow and self.narrow.scope == "hidden":
            raise ValueError("a prompt narrowed between layers shows no attention to sum; take another signal")
        return self

    @model_validator(mode="after")
    def _what_comes_back_has_a_place(self) -> PolicyRecipe:
        by_blocks = self._scores_by(Similarity, Representatives)
        if self.evicted == "dropped":
            if self._scores_by(Representatives):
                raise ValueError("blocks have representatives on the host alone: write `evicted: host`")
            return self
        if not self.online or self.prefill:
            raise ValueError("`evicted: host` goes with a `decode` that is online, and without `prefill`")
        cut = self.decode
        if self.positions == "compact" or cut.skip or cut.drop or cut.sizes.shape != "uniform":
            raise ValueError(
                "`evicted: host` goes with layers of one size, and with original or clamped positions to come back to"
            )
        if cut.score and (not by_blocks or cut.score.share != "layer" or cut.score.pool or cut.score.blocks):
            raise ValueError(
                "`evicted: host` takes back whole blocks for all heads of a layer: rank by `similarity` or "
                "`representatives`, with `share: layer`, and without pool and blocks"
            )
        return self

    @property
    def budgeted(self) -> bool:
        """Whether the policy needs a budget."""
        return bool(self.prefill or self.decode or self.narrow)

    @property
    def composition(self) -> str:
        """Say the policy in one line, in the terms of the algebra."""
        from pipeline.kv import words

        return words.composition(self)

    @property
    def types(self) -> Precision:
        """The storage types as a value of the algebra."""
        return Precision(self.precision.k, self.precision.v)

    def unheld(self) -> str | None:
        """Say what no engine can hold together, or None: attention rows are not to be had of quantised values."""
        if self.types.quantised and self._sums():
            return f"{self.precision.k}/{self.precision.v} needs flash attention, which shows no attention to sum"
        return None

    def _sums(self) -> bool:
        """Tell whether some cut gathers every attention row."""
        return self._scores_by(SoFar, Representatives)

    def _scores_by(self, *signals: type) -> bool:
        cuts = [cut for cut in (self.prefill, self.decode) if cut and cut.score]
        return any(isinstance(cut.score.by, signals) for cut in cuts)

    def problems(self, budget: int, layers: int) -> Iterator[str]:
        """Yield what is wrong with a budget for this policy on a model of so many layers."""
        from pipeline.kv import build

        for name, cut in (("prefill", self.prefill), ("decode", self.decode)):
            for layer in cut.skip if cut else ():
                if layer >= layers:
                    yield f"{name}.skip: layer {layer}, but the model's layers are 0 to {layers - 1}"
            if cut and (short := build.too_small(cut, self.room_for_text(budget), layers)):
                yield f"{name}: {short}{self.reserved(budget)}"
        if self.evicted == "host" and (short := build.too_few(self.decode, budget)):
            yield f"decode: {short}"
        if self.narrow and budget <= self.narrow.keep.sinks + int(self.narrow.keep.recent):
            yield f"narrow: a budget of {budget} entries, but sinks and newest tokens need more"

    def policy(self, budget: int | None, slack: int, layers: int) -> Policy:
        """Return the policy at a budget: entries that a layer may hold on average after a cut.

        Raises ConfigError if the budget does not fit.
        """
        from pipeline.kv import build

        if self.budgeted and (found := list(self.problems(budget, layers))):
            raise ConfigError(*found)
        return build.policy(self, budget, slack)


def read(name: str) -> PolicyRecipe:
    """Read the recipe of a policy."""
    return recipes.read("kv", name, PolicyRecipe)
