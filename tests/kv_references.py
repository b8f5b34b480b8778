"""The papers' rules once more, written from their text over full attention matrices with loops and sorts.

Nothing here is shared with the algebra. Rows are lists of attention weights [heads][token][entry] or tensors like
them; results are the tokens that stay, rising.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Alive = list[int]  # tokens that live, oldest first
Rule = Callable[[Tensor, Alive, int], Alive]
"""(one group's rows [heads, t + 1, t + 1], what lives with token t, evictions so far) -> what stays."""


def best(scores: Sequence[float], count: int) -> list[int]:
    """Return the places of the ``count`` highest scores, rising; of equals the later one is better."""
    return sorted(sorted(range(len(scores)), key=lambda j: (scores[j], j), reverse=True)[:count])


def pooled(scores: Sequence[float], width: int, kind: str) -> list[float]:
    """Return a sliding mean, zeros counted beyond the ends, or a sliding maximum."""
    half, found = width // 2, []
    for j in range(len(scores)):
        around = scores[max(0, j - half) : j + half + 1]
        found.append(max(around) if kind == "maximum" else sum(around) / width)
    return found


def window_votes(rows: Tensor, here: Alive, window: int) -> list[list[float]]:
    """Return for each head what the newest queries give to every older token of ``here``."""
    return [[sum(float(head[i, j]) for i in here[-window:]) for j in here[:-window]] for head in rows]


def snapkv(rows: Tensor, here: Alive, budget: int, window: int, pool: tuple[int, str]) -> Alive:
    """Return what one KV head keeps, given its group's rows: the mean of pooled votes decides, the window stays."""
    heads = [pooled(votes, *pool) for votes in window_votes(rows, here, window)]
    mean = [sum(column) / len(heads) for column in zip(*heads, strict=True)]
    return [here[j] for j in best(mean, budget - window)] + here[-window:]


def pyramidkv_sizes(capacity: int, window: int, layers: int, entries: int, beta: int = 20) -> list[int]:
    """Return the entries a layer of PyramidKV holds of a prompt, the window included."""
    free = capacity - window
    if entries < capacity:
        return [entries] * layers
    if entries < 2 * free:
        return [capacity] * layers
    least, most = free // beta, free * 2 - free // beta
    if most >= entries - window:
        most = entries - window
        least = free * 2 - most
    step = (most - least) // (layers - 1)
    return [most - step * layer + window for layer in range(layers)]


def knorm(keys: Tensor, budget: int) -> Alive:
    """Return the tokens of one KV head's shortest keys [n, head_dim]."""
    return best([-math.sqrt(sum(float(value) ** 2 for value in key)) for key in keys], budget)


def streaming(seen: int, budget: int, sinks: int) -> list[tuple[int, int]]:
    """Return (token, position) of what StreamingLLM holds after ``seen`` tokens."""
    alive = list(range(seen)) if seen <= budget else [*range(sinks), *range(seen - budget + sinks, seen)]
    return list(zip(alive, range(len(alive)), strict=True))


def tova(budget: int) -> Rule:
    """Return the rule: who gets least of the newest row, over all heads, goes; the newest stays."""

    def rule(rows: Tensor, alive: Alive, evicted: int) -> Alive:
        if len(alive) <= budget:
            return alive
        newest = rows[:, -1].mean(0).tolist()
        worst = min(alive[:-1], key=lambda j: (newest[j], j))
        return [j for j in alive if j != worst]

    return rule


def h2o(budget: int, recent: int) -> Rule:
    """Return the rule: of the tokens before the newest ones, who has drawn least since it came goes."""

    def rule(rows: Tensor, alive: Alive, evicted: int) -> Alive:
        if len(alive) <= budget:
            return alive
        drawn = rows.sum((0, 1)).tolist()
        worst = min(alive[:-recent], key=lambda j: (drawn[j], j))
        return [j for j in alive if j != worst]

    return rule


def scissorhands(budget: int, recent: int, history: int, drop: int) -> Rule:
    """Return the rule: over budget, ``drop`` tokens that were seldom above an even share of a row go at once."""

    def rule(rows: Tensor, alive: Alive, evicted: int) -> Alive:
        if len(alive) <= budget:
            return alive
        hits = dict.fromkeys(alive, 0)
        for head in rows:
            for row in head[-history:]:
                even = 1 / sum(1 for weight in row if weight > 0)
                for j in alive:
                    hits[j] += bool(row[j] > even)
        older = alive[:-recent]
        stay = best([hits[j] for j in older], budget - drop - recent)
        return [older[j] for j in stay] + alive[-recent:]

    return rule


def treekv(budget: int, sinks: int, recent: int) -> Rule:
    """Return the rule: a pair of neighbours competes by mean attention, the pair moving on at each eviction."""
    cycle = budget - sinks - recent

    def rule(rows: Tensor, alive: Alive, evicted: int) -> Alive:
        if len(alive) <= budget:
            return alive
        mean = {}
        for j in alive:
            column = rows[:, j:, j]
            mean[j] = float(column.sum()) / column.numel()
        left, right = alive[sinks + evicted % cycle : sinks + evicted % cycle + 2]
        loser = right if mean[left] > mean[right] else left
        return [j for j in alive if j != loser]

    return rule


def pyramidinfer_share(least: float, recent: float, layers: int, tokens: int) -> float:
    """Return the share of a prompt's entries that PyramidInfer's layers hold on average."""
    newest = 1 + int(recent * tokens)
    older, held = tokens - newest, []
    for layer in range(layers):
        held.append(older + newest)
        older = int(older * ((1 - least) * (math.cos(math.pi * layer / layers) + 1) / 2 + least))
    return sum(held) / layers / tokens


def pyramidinfer(rows: Tensor, here: Alive, going_on: int, recent: int, sinks: int, most: float) -> Alive:
    """Return the tokens that go on after a layer, given its rows [heads, n, n]."""
    asked = here[-recent:]
    weights = [1 + (most - 1) * i / (len(asked) - 1) for i in range(len(asked))]
    mean = rows.mean(0)
    older = here[sinks:-recent]
    scores = [sum(w * float(mean[i, j]) for w, i in zip(weights, asked, strict=True)) for j in older]
    return here[:sinks] + [older[j] for j in best(scores, going_on - sinks - recent)] + asked


def fastkv(rows: Tensor, here: Alive, going_on: int, window: int, width: int) -> Alive:
    """Return the tokens that go on after FastKV's layer, given its rows [heads, n, n]."""
    heads = [pooled(votes, width, "maximum") for votes in window_votes(rows, here, window)]
    total = [sum(column) for column in zip(*heads, strict=True)]
    return [here[j] for j in best(total, going_on - window)] + here[-window:]


def gemfilter(logits: Tensor, budget: int, width: int) -> Alive:
    """Return the tokens that GemFilter reads again, given a layer's q.k [heads, n, n]."""
    return best(pooled(logits[:, -1].sum(0).tolist(), width, "average"), budget)


def infllm(
    rows: Tensor,
    keys: Tensor,
    queries: Tensor,
    *,
    cuts: Sequence[int],
    sinks: int,
    window: int,
    turn: Callable[[Tensor], Tensor],
    block: int = 16,
    best_keys: int = 4,
) -> list[int]:
    """Return the blocks of one layer, best first, at the last of ``cuts``: tokens seen when one was made.

    Rows [heads, n, n]; keys [kv_heads, n, d] and the newest queries [heads, w, d] without RoPE; ``turn`` moves queries
    to where they see all distant keys from.
    """
    group, found = len(rows) // len(keys), {}
    for seen in cuts:
        for number in range((seen - window - sinks) // block):
            if number in found:
                continue
            first = sinks + number * block
            found[number] = []
            for head, own in enumerate(keys):
                drawn = rows[head * group : (head + 1) * group, :seen, first : first + block].sum((0, 1)).tolist()
                found[number].append(sum(own[first + j] for j in best(drawn, best_keys)) / best_keys)
    asking = [turn(head).mean(0) for head in queries]
    scores = {
        number: sum(float(query @ means[head // group]) for head, query in enumerate(asking))
        for number, means in found.items()
    }
    return sorted(scores, key=lambda number: (scores[number], number), reverse=True)


def semantic_blocks(keys: Tensor, queries: Tensor, block: int) -> list[int]:
    """Return the blocks of keys [kv_heads, n, d], best first, by the cosine to the mean of queries [heads, w, d]."""
    every, query = keys.mean(0), queries.mean((0, 1))
    means = [every[first : first + block].mean(0) - every.mean(0) for first in range(0, len(every), block)]
    scores = [float(mean @ query) / math.hypot(*mean.tolist()) for mean in means]
    return sorted(range(len(scores)), key=lambda number: (scores[number], number), reverse=True)
