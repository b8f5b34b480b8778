"""Runs of a policy on a model, with a record of which entries every token could see in each layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pipeline.engines.cache import Room
from pipeline.engines.opening import opened
from pipeline.engines.prompt import prefilled
from pipeline.engines.snapshot import Snapshot
from pipeline.engines.stream import Stream
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv import recipe
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision
from tests.kv_models import LAYERS, View, causal_view, words

BUDGETS = (24, 40, 48)  # windows of 32 need more than the first


def small(name: str, slack: int) -> Policy:
    """Return a recipe's policy at its smallest budget, stored as the engine does, with summaries that come often."""
    source = recipe.read(name)
    budget = next(budget for budget in BUDGETS if not source.budgeted or not list(source.problems(budget, LAYERS)))
    policy = replace(source.policy(budget, slack, LAYERS), precision=Precision(), slack=slack)
    return replace(policy, summary=policy.summary and replace(policy.summary, after=budget))


@dataclass(frozen=True)
class Everything:
    """Sizes under which a cut is due at every token beyond the budget, and leaves all there is."""

    def limits(self, budget: int, layers: int) -> list[int]:
        return [budget] * layers

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        return list(lives)


EVERYTHING = Everything()


@dataclass
class Record:
    """A cache that notes what is alive before each append of new tokens; those read again are none."""

    cache: object
    stream: Stream | None = None
    before: list[tuple[Snapshot, int, int]] = field(default_factory=list)  # state, position, tokens that come

    @property
    def block(self) -> int:
        return self.cache.block

    def append(self, ids, position, wanted, watch):
        state = self.stream.snapshot()
        if not self.before or state.seen > self.before[-1][0].seen:
            self.before.append((state, position, len(ids)))
        return self.cache.append(ids, position, wanted, watch)

    def read(self):
        return self.cache.read()

    def write(self, layers, position):
        self.cache.write(layers, position)


@dataclass
class Run:
    """A policy's stream with all logits since the prompt (or since the start, if it was fed online)."""

    stream: Stream
    logits: np.ndarray
    prompt: Snapshot | None  # as it was prefilled, before any cut
    record: Record

    def tokens(self) -> list[int]:
        """Return the tokens that the logits come from: a prompt's is the newest that reached the last layer."""
        first = [int(self.prompt.origins[-1].max())] if self.prompt else []
        return first + list(range(self.stream.seen - len(self.logits) + len(first), self.stream.seen))

    def origins(self) -> list[list[list[int]]]:
        """Return the tokens alive in each layer and KV head."""
        return [layer.tolist() for layer in self.stream.snapshot().origins]

    def view(self, model, count: int) -> View:
        """Return what every token saw."""
        view = causal_view(model, count)
        if self.prompt:
            _show_prompt(view, self.prompt)
        for state, position, coming in self.record.before:
            _show_block(view, state, position, coming)
        return view


def run(model, policy: Policy, ids: list[int], prompt: int, step: int | None = None) -> Run:
    """Feed a prompt as the policy wants it and the rest in blocks of ``step`` tokens, or as the policy cuts them."""
    engine = TorchKvEngine(model)
    record = Record(engine.cache(Room(tuple(policy.most_entries(LAYERS, prompt, len(ids))), rows=bool(policy.running))))
    record.stream = stream = opened(engine, record, policy, words())
    if policy.online:
        return Run(stream, _fed(stream, ids, step), None, record)
    read = prefilled(engine, ids[:prompt], policy)
    stream.take(read)
    logits = [read.logits[None]]
    if len(ids) > prompt:
        logits.append(_fed(stream, ids[prompt:], step))
    return Run(stream, np.concatenate(logits), read, record)


def _fed(stream: Stream, ids: list[int], step: int | None) -> np.ndarray:
    step = step or len(ids)
    return np.concatenate([stream.feed(ids[at : at + step], every=True) for at in range(0, len(ids), step)])


def _show_prompt(view: View, prompt: Snapshot) -> None:
    """A prompt's tokens see those that got as far as they did; what others see does not matter."""
    count = prompt.seen
    view.visible[:, :, :count] = torch.eye(count, view.visible.shape[-1], dtype=torch.bool)
    for layer, (origins, positions) in enumerate(zip(prompt.origins, prompt.positions, strict=True)):
        for head, (here, places) in enumerate(zip(origins, positions, strict=True)):
            view.visible[layer, head, here[:, None], here] = torch.ones(len(here), len(here), dtype=torch.bool).tril()
            view.places[layer, head, here[:, None], here] = places.expand(len(here), -1)
            view.own[here] = places


def _show_block(view: View, state: Snapshot, position: int, coming: int) -> None:
    """New tokens see what is alive and one another, causally."""
    new, places = torch.arange(state.seen, state.seen + coming), torch.arange(position, position + coming)
    view.own[new] = places
    view.visible[:, :, new] = False
    for layer, (origins, positions) in enumerate(zip(state.origins, state.positions, strict=True)):
        for head, (alive, at) in enumerate(zip(origins, positions, strict=True)):
            view.visible[layer, head, new[:, None], alive] = True
            view.visible[layer, head, new[:, None], new] = torch.ones(coming, coming, dtype=torch.bool).tril()
            view.places[layer, head, new[:, None], alive] = at.expand(coming, -1)
            view.places[layer, head, new[:, None], new] = places.expand(coming, -1)
