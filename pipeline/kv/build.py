"""A recipe and a budget become a policy: every part of the schema is mapped to its value, in one place."""

from __future__ import annotations

from functools import partial

from pipeline.kv import allocators, narrowing, positions, recipe, rewriting, running, scorer, selectors, signals
from pipeline.kv.cut import Cut
from pipeline.kv.policy import Policy, Summary
from pipeline.kv.precision import Precision
from pipeline.kv.segments import Segments

GATHERED = {"sums": running.Sums, "means": running.Means}
SELECTORS = {"top": selectors.top, "cyclic_pairs": selectors.cyclic_pairs}
SIGNALS = {
    recipe.KeyNorm: lambda by, keep: signals.KeyNorm(by.high),
    recipe.Chance: lambda by, keep: signals.Chance(by.seed),
    recipe.Window: lambda by, keep: signals.WindowAttention(
        by.queries, signals.total if by.over_queries == "sum" else signals.RisingMean(by.rising_to)
    ),
    recipe.SoFar: lambda by, keep: signals.RunningAttention(
        partial(running.Hits, by.history) if by.history else GATHERED[by.gather]
    ),
    recipe.Logit: lambda by, keep: signals.LastLogit(),
    recipe.Similarity: lambda by, keep: signals.BlockSimilarity(by.block, by.queries, keep.sinks),
    recipe.Representatives: lambda by, keep: signals.Representatives(by.block, by.queries, by.keys, keep.sinks),
}
SIZES = {
    recipe.UniformSizes: lambda sizes, keep: allocators.Uniform(),
    recipe.RatioSizes: lambda sizes, keep: allocators.KeepRatio(sizes.keep),
    recipe.PyramidSizes: lambda sizes, keep: allocators.ArithmeticPyramid(sizes.beta, int(keep.recent)),
    recipe.DecaySizes: lambda sizes, keep: allocators.Decay(sizes.factor, sizes.least),
    recipe.LinearSizes: lambda sizes, keep: allocators.Linear(sizes.last),
    recipe.FallingSizes: lambda sizes, keep: allocators.Falling(sizes.hard, sizes.target, sizes.high, sizes.low),
}
POSITIONS = {"original": positions.Original(), "compact": positions.Compact()}


def policy(source: recipe.PolicyRecipe, budget: int | None, slack: int) -> Policy:
    """Return the policy of a recipe at a budget; ``slack`` holds where the recipe has none of its own."""
    places = source.positions
    own = slack if source.slack is None else source.slack
    if isinstance(own, float):
        own = int(own * budget)
    return Policy(
        budget=budget if source.budgeted else None,
        prefill=source.prefill and cut(source.prefill),
        decode=source.decode and cut(source.decode),
        online=source.online,
        narrowing=source.narrow and _narrowing(source.narrow),
        positions=POSITIONS[places] if isinstance(places, str) else positions.Clamped(int(places.clamped * budget)),
        precision=source.types,
        slack=own if source.decode else 0,
        summary=source.summary and _summary(source.summary, budget),
        reprefill=source.rebuild == "reprefill",
        evicted=source.evicted,
    )


def cut(source: recipe.CutRecipe) -> Cut:
    """Return the value of a rule of eviction."""
    keep = source.keep
    recent = 0 if keep.recent == "rest" else keep.recent
    sizes = SIZES[type(source.sizes)](source.sizes, keep)
    return Cut(
        segments=Segments(keep.sinks, recent),
        scorer=source.score and _scorer(source.score, keep),
        select=SELECTORS[source.score.select] if source.score else selectors.top,
        allocator=allocators.Dropping(sizes, source.drop) if source.drop else sizes,
        skip=frozenset(source.skip),
    )


def too_small(source: recipe.CutRecipe, budget: int, layers: int) -> str | None:
    """Say which layer's size leaves no room for what always stays, or None."""
    value = cut(source)
    active = [layer for layer in range(layers) if layer not in value.skip]
    limits = value.allocator.limits(budget, len(active))
    sizes = value.allocator.targets(budget, [limit + 1 for limit in limits])
    least = value.segments.least(source.score is not None)
    for layer, size in zip(active, sizes, strict=True):
        if size < least:
            return f"a budget of {budget} leaves {size} entries to layer {layer}, but what always stays needs {least}"
    return None


def too_few(source: recipe.CutRecipe, budget: int) -> str | None:
    """Say why blocks could not be called back from the host, or None: each one leaves the window as a whole."""
    if not source.score:
        return None
    segments, block = cut(source).segments, source.score.by.block
    left = budget - segments.sinks - segments.recent_of(budget)
    if left < block - 1:
        return f"a budget of {budget} leaves {left} entries to blocks of {block}, which need {block - 1} at least"
    return None


def _scorer(source: recipe.Score, keep: recipe.Keep) -> scorer.Scorer:
    smoothing = None
    if source.pool:
        smoothing = scorer.Pool(source.pool.kind, source.pool.width, source.pool.padded)
    elif source.blocks:
        smoothing = scorer.Blocks(source.blocks)
    signal = SIGNALS[type(source.by)](source.by, keep)
    return scorer.Scorer(signal, smoothing, source.over_group, source.share)


def _summary(source: rewriting.Summary, budget: int) -> Summary:
    return Summary(
        mode=source.mode,
        tokens=source.most(budget),
        after=source.due(budget),
        first=source.first,
        reads=source.read(budget),
        shifts=source.reinsert == "shift",
        precision=Precision(source.precision, source.precision),
    )


def _narrowing(source: recipe.Narrow) -> narrowing.Narrowing:
    if source.depth is None:
        schedule = narrowing.CosineCascade(source.tokens)
    else:
        schedule = narrowing.AtLayer(source.depth, source.tokens)
    segments = Segments(source.keep.sinks, source.keep.recent)
    return narrowing.Narrowing(source.scope, schedule, segments, _scorer(source.score, source.keep))
