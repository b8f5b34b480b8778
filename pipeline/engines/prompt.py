"""Prompts prefilled as a whole: every token through every layer, or narrowed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.cache import KvEngine, LayerKv, Room, Watch
from pipeline.engines.snapshot import Snapshot
from pipeline.kv.evidence import Evidence, Queries
from pipeline.kv.narrowing import Narrowing
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision
from pipeline.kv.running import Running
from pipeline.kv.signals import window


def prefilled(engine: KvEngine, ids: Sequence[int], policy: Policy) -> Snapshot:
    """Return a prompt as the policy's cuts want to see it, before any of them."""
    if not policy.narrowing:
        return whole(engine, ids, policy.precision, policy.window(len(ids)), policy.running)
    if policy.narrowing.scope == "input":
        return _read_again(engine, ids, policy)
    return _narrowed(engine, ids, policy)


def whole(
    engine: KvEngine, ids: Sequence[int], precision: Precision, queries: int, running: Running | None
) -> Snapshot:
    """Prefill ``ids``; keep the newest ``queries`` and let ``running`` see every attention row."""
    layers = engine.shape.layers
    memories = [running() for _ in range(layers)] if running else []
    rows = (lambda layer, weights: memories[layer].observe(weights)) if running else None
    seen: list[Queries] = []
    cache = engine.cache(Room((len(ids),) * layers, precision, prefill=True, queries=queries > 0, rows=bool(running)))
    try:
        for first in range(0, len(ids), cache.block):
            block = ids[first : first + cache.block]
            fed = first + len(block)
            watched = max(0, min(len(block), queries - (len(ids) - fed)))
            newest = np.arange(len(block)) == len(block) - 1
            logits, vectors = cache.append(block, first, newest, Watch(watched, rows))
            new = torch.arange(fed - watched, fed)
            found = [Queries(vector, new, new) for vector in vectors]
            seen = [old.joined(query) for old, query in zip(seen, found, strict=True)] if seen else found
        places = [torch.arange(len(ids)).expand(engine.shape.kv_heads, -1)] * layers
        return Snapshot(cache.read(), places, places, seen, memories, len(ids), len(ids), logits[-1].copy())
    finally:
        cache.close()


def _read_again(engine: KvEngine, ids: Sequence[int], policy: Policy) -> Snapshot:
    """Choose tokens by what one of the first layers shows, then prefill these alone, from position 0 on."""
    narrowing = policy.narrowing
    stops = narrowing.stops(engine.shape.layers, len(ids), policy.budget)
    if not stops:
        return whole(engine, ids, policy.precision, policy.window(len(ids)), policy.running)
    (layer, going_on), places = stops[0], torch.arange(len(ids))
    pieces = engine.pieces([layer + 1], policy.precision, len(ids))
    try:
        _, layers, vectors = pieces.run(0, pieces.embed(ids), places.numpy(), _window(narrowing, len(ids)))
        shown = _evidence(engine, layer, layers[-1], places, vectors, len(ids))
    finally:
        pieces.close()
    keep = narrowing.keep(shown, going_on, narrowing.recent(len(ids)))
    chosen = [ids[index] for index in keep.tolist()]
    again = whole(engine, chosen, policy.precision, policy.window(len(chosen)), policy.running)
    return replace(
        again,
        origins=[keep.expand(engine.shape.kv_heads, -1)] * engine.shape.layers,
        queries=[replace(queries, origins=keep[queries.origins]) for queries in again.queries],
        seen=len(ids),
    )


def _narrowed(engine: KvEngine, ids: Sequence[int], policy: Policy) -> Snapshot:
    """Run the layers piece by piece, at each stop on the tokens that go on; they keep their positions."""
    narrowing = policy.narrowing
    stops = narrowing.stops(engine.shape.layers, len(ids), policy.budget)
    recent, places = narrowing.recent(len(ids)), torch.arange(len(ids))
    layers: list[LayerKv] = []
    origins: list[Tensor] = []
    queries: list[Queries] = []
    pieces = engine.pieces([layer + 1 for layer, _ in stops], policy.precision, len(ids))
    try:
        states = pieces.embed(ids)
        for piece, going_on in enumerate([count for _, count in stops] + [None]):
            wanted = max(_window(narrowing, len(ids)), policy.window(len(ids)))
            states, made, vectors = pieces.run(piece, states, places.numpy(), wanted)
            layers += made
            origins += [places] * len(made)
            queries += [Queries(vector, places[-vector.shape[1] :], places[-vector.shape[1] :]) for vector in vectors]
            if going_on is not None:
                shown = _evidence(engine, len(layers) - 1, made[-1], places, vectors, len(ids))
                keep = narrowing.keep(shown, going_on, recent)
                states, places = states[keep.numpy()], places[keep]
    finally:
        pieces.close()
    places = [where.expand(engine.shape.kv_heads, -1) for where in origins]
    return Snapshot(layers, places, places, queries, [], len(ids), len(ids), states[-1])


def _window(narrowing: Narrowing, tokens: int) -> int:
    return window(narrowing.scorer.signal.queries, tokens)


def _evidence(
    engine: KvEngine, layer: int, kv: LayerKv, places: Tensor, vectors: Sequence[Tensor], tokens: int
) -> Evidence:
    """Return what a piece's last layer shows of a prompt of ``tokens``, the tokens at ``places`` still in it."""
    entries = places.expand(engine.shape.kv_heads, -1)
    newest = places[-vectors[-1].shape[1] :] if vectors else None
    queries = Queries(vectors[-1], newest, newest) if vectors else None
    return Evidence(layer, tokens, entries, entries, kv.keys, engine.rope, queries)
