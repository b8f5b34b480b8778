"""A policy in one line, in the terms of the algebra, as `python -m pipeline list` prints it."""

from __future__ import annotations

from pipeline.kv import recipe, rewriting

SIGNALS = {
    recipe.KeyNorm: lambda by: "long keys" if by.high else "short keys",
    recipe.Chance: lambda by: "lot",
    recipe.Window: lambda by: f"attention of the last {_number(by.queries)} queries",
    recipe.SoFar: lambda by: f"attention {by.gather}" + (f" of the last {by.history} queries" if by.history else ""),
    recipe.Logit: lambda by: "q.k of the last query",
    recipe.Similarity: lambda by: f"cosine of blocks of {by.block} to the last {by.queries} queries",
    recipe.Representatives: lambda by: (
        f"q.k of the last {by.queries} queries with the {by.keys} most attended keys of blocks of {by.block}"
    ),
}
SIZES = {
    recipe.UniformSizes: lambda sizes: "budget",
    recipe.RatioSizes: lambda sizes: f"{sizes.keep:g} x budget",
    recipe.PyramidSizes: lambda sizes: f"pyramid(beta {sizes.beta})",
    recipe.DecaySizes: lambda sizes: f"decay({sizes.factor:g} a layer, least {sizes.least})",
    recipe.LinearSizes: lambda sizes: f"linear(to {sizes.last:g} x budget)",
    recipe.FallingSizes: lambda sizes: f"falling({sizes.high:g} to {sizes.low:g})",
}
SHARES = {"head": "a KV head", "layer": "a layer", "model": "the model"}


def composition(source: recipe.PolicyRecipe) -> str:
    """Return the one line."""
    parts = []
    if source.narrow:
        parts.append(_narrow(source.narrow))
    if source.prefill:
        parts.append(f"prompt's end: {_cut(source.prefill)}")
    if source.decode:
        when = "always" if source.online else "from the prompt's end on"
        parts.append(f"{when}: {_cut(source.decode, source.summary)}")
    if source.rebuild == "reprefill":
        parts.append("survivors computed again")
    if source.evicted == "host":
        parts.append("what goes lives on in host memory" + (" and may come back" if source.decode.score else ""))
    parts.append(f"{_positions(source.positions)} positions")
    k, v = source.precision.k, source.precision.v
    parts.append(k if k == v else f"{k}/{v}")
    return " | ".join(parts if source.budgeted else ["everything", *parts])


def _cut(cut: recipe.CutRecipe, summary: rewriting.Summary | None = None) -> str:
    size = SIZES[type(cut.sizes)](cut.sizes)
    if cut.drop:
        size += f", then {cut.drop:g} of it dropped at once"
    skip = f", layers {', '.join(map(str, cut.skip))} whole" if cut.skip else ""
    parts = [*_kept(cut.keep), *_chosen(cut.score)]
    if summary:
        parts.insert(1 if cut.keep.sinks else 0, _summary(summary))
    return f"{' + '.join(parts)} = {size}{skip}"


def _summary(summary: rewriting.Summary) -> str:
    if summary.mode == "none":
        return f"nothing({_number(summary.tokens)})"
    author = "the model's" if summary.mode == "model" else "sentences"
    if summary.reads:
        author += f" of {_number(summary.reads)}"
    way = "" if summary.reinsert == "rebuild" else ", put in by a shift"
    return (
        f"summary({_number(summary.tokens)}, {author}, every {summary.first} to {_number(summary.after)} evicted{way})"
    )


def _kept(keep: recipe.Keep) -> list[str]:
    parts = [f"sinks({keep.sinks})"] if keep.sinks else []
    return parts + ([f"recent({_number(keep.recent)})"] if keep.recent else [])


def _chosen(score: recipe.Score | None) -> list[str]:
    if not score:
        return []
    words = SIGNALS[type(score.by)](score.by)
    if score.pool:
        words += f", {score.pool.kind} pool {score.pool.width}" + ("" if score.pool.padded else " unpadded")
    if score.blocks:
        words += f", blocks of {score.blocks}"
    rule = "" if score.select == "top" else f" by {score.select.replace('_', ' ')}"
    return [f"best for {SHARES[score.share]}{rule} ({words})"]


def _narrow(narrow: recipe.Narrow) -> str:
    target = "later layers" if narrow.scope == "hidden" else "a second reading"
    where = "after every layer" if narrow.depth is None else f"at {narrow.depth:g} of the depth"
    share = (
        "by cosine" if narrow.depth is None else f"{_number(narrow.tokens)} or budget" if narrow.tokens else "budget"
    )
    kept = " + ".join([*_kept(narrow.keep), *_chosen(narrow.score)])
    return f"{where} {share} goes on to {target}: {kept}"


def _positions(value: str | recipe.Clamped) -> str:
    return value if isinstance(value, str) else f"clamped({value.clamped:g} x budget)"


def _number(value: int | float | str) -> str:
    return f"{100 * value:g} %" if isinstance(value, float) else str(value)
