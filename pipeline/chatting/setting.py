"""The policy that a conversation runs under: what it keeps, and how long it may go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.kv import recipe as kv
from pipeline.kv.precision import CacheShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.engines.cache import Cache, KvEngine
    from pipeline.engines.stream import Stream
    from pipeline.kv.policy import Policy

DEFAULT_POLICY = "ssskv_lite"
DEFAULT_BUDGET = 1024
WHOLE = 4096  # most tokens of a conversation of which all are kept: its cache is allocated at the start


@dataclass(frozen=True)
class Model:
    """What a setting has to fit."""

    shape: CacheShape
    context: int  # tokens of the longest text that it was trained for


@dataclass(frozen=True)
class Setting:
    """A policy by its name, at a budget; None where it needs none."""

    name: str
    budget: int | None
    recipe: kv.PolicyRecipe
    policy: Policy
    most: tuple[int, ...]  # entries that each layer holds at most
    limit: int | None  # tokens after which a conversation has to end; None if it may go on for ever

    def __str__(self) -> str:
        return self.name if self.budget is None else f"{self.name}, budget {self.budget}"


def setting(name: str, budget: int, slack: int, model: Model) -> Setting:
    """Return a recipe's policy for a conversation; raise UserError with every misfit.

    A conversation has no prompt's end: what the policy does while tokens come it does from the first token on.
    """
    recipe = kv.read(name)
    if problems := list(_misfits(name, recipe, budget, model.shape)):
        raise UserError(*problems)
    recipe = recipe.model_copy(update={"prefill": None, "narrow": None, "online": recipe.decode is not None})
    policy = recipe.policy(budget, slack, model.shape.layers)
    limit = _limit(policy, model)
    most = policy.most_entries(model.shape.layers, 0, limit or sys.maxsize)
    if limit is None and max(most) > model.context:
        raise UserError(
            f"budget {budget}: {name} then holds up to {max(most)} entries, but the model was trained for "
            f"{model.context}; take a smaller budget"
        )
    return Setting(name, policy.budget, recipe, policy, tuple(most), limit)


def cache_for(engine: KvEngine, chosen: Setting) -> Cache:
    """Return an empty cache of the size that the setting needs."""
    from pipeline.engines.stream import room

    return engine.cache(room(engine, chosen.policy, 0, chosen.limit or sys.maxsize))


def stream_for(engine: KvEngine, cache: Cache, chosen: Setting, tokenizer: PreTrainedTokenizerBase) -> Stream:
    """Return the stream of a conversation, on an empty cache."""
    from pipeline.engines.opening import opened

    return opened(engine, cache, chosen.policy, tokenizer)


def _misfits(name: str, recipe: kv.PolicyRecipe, budget: int, shape: CacheShape) -> Iterator[str]:
    if recipe.budgeted and not recipe.decode:
        yield (
            f"policy {name}: it cuts a prompt at its end alone, which a conversation does not have; take one that cuts "
            f"while tokens come, such as {DEFAULT_POLICY}"
        )
    if recipe.evicted == "host":
        yield (
            f"policy {name}: it keeps every entry in the machine's memory, which a conversation without end would "
            f"fill; take one that drops them, such as {DEFAULT_POLICY}"
        )
    if recipe.budgeted:
        yield from (f"policy {name}: {problem}" for problem in recipe.problems(budget, shape.layers))
    yield from (f"policy {name}: {problem}; take another" for problem in recipe.types.problems(shape))
    if problem := recipe.unheld():
        yield f"policy {name}: {problem}; take another"


def _limit(policy: Policy, model: Model) -> int | None:
    """Return after how many tokens some layer, or the newest position, grows beyond what there is."""
    layers = model.shape.layers
    limits = policy.decode.limits(policy.budget, layers) if policy.decode else [None]
    if None in limits:
        return min(WHOLE, model.context)
    return None if policy.positions.shifts else model.context
