"""The laws of KV-cache policies as values: coverage, counts, order, slack, bytes, and recipes that do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipes, schema
from pipeline.errors import ConfigError
from pipeline.kv import policy as kv
from pipeline.kv.policy import Never, Over, Policy, PolicyRecipe, Segments
from pipeline.kv.precision import CacheShape, Precision

F16 = Precision()
QWEN3_06B = CacheShape(layers=28, kv_heads=8, key_length=128, value_length=128)
PYTHIA_28B = CacheShape(layers=32, kv_heads=32, key_length=80, value_length=80)


def streaming(sinks: int, budget: int, slack: int = 0) -> Policy:
    return Policy(Segments(sinks, budget - sinks), Over(budget, slack), "original", F16)


def alive(policy: Policy, tokens: int, block: int = 1) -> tuple[list[int], int]:
    """Return the tokens alive after feeding ``tokens`` of them in blocks, and the most that ever were."""
    entries: list[int] = []
    peak = fed = 0
    while fed < tokens:
        room = policy.room(len(entries))
        count = min(block, tokens - fed, tokens if room is None else room)
        assert count > 0
        entries += range(fed, fed + count)
        fed += count
        peak = max(peak, len(entries))
        gone = policy.evicted(len(entries))
        entries = [entry for index, entry in enumerate(entries) if index not in gone]
        assert not policy.evicted(len(entries)), "a second cut without a new token changes nothing"
    return entries, peak


sizes = st.tuples(st.integers(0, 8), st.integers(1, 40), st.integers(0, 20), st.integers(0, 200), st.integers(1, 50))


@given(sizes)
def test_survivors_are_the_first_and_the_last_in_order(size):
    sinks, recent, slack, tokens, block = size
    budget = sinks + recent
    entries, peak = alive(streaming(sinks, budget, slack), tokens, block)
    assert len(entries) == len(set(entries))
    assert entries == sorted(entries)
    assert set(range(min(sinks, tokens))) <= set(entries)
    assert set(range(max(0, tokens - recent), tokens)) <= set(entries)
    assert min(budget, tokens) <= len(entries) <= budget + slack
    assert peak == streaming(sinks, budget, slack).most_entries(tokens) <= budget + slack + 1


@given(sizes)
def test_without_slack_it_is_the_papers_rule_whatever_the_block(size):
    sinks, recent, _, tokens, block = size
    entries, _ = alive(streaming(sinks, sinks + recent), tokens, block)
    assert entries == sorted({*range(min(sinks, tokens)), *range(max(0, tokens - recent), tokens)})


@given(sizes)
def test_blocks_between_two_cuts_change_nothing(size):
    sinks, recent, slack, tokens, block = size
    policy = streaming(sinks, sinks + recent, slack)
    assert alive(policy, tokens, block) == alive(policy, tokens)


@given(st.integers(1, 50), st.integers(0, 10), st.integers(0, 100))
def test_a_budget_as_long_as_the_text_evicts_nothing(tokens, slack, more):
    assert alive(streaming(0, tokens + more, slack), tokens) == (list(range(tokens)), tokens)


@given(st.integers(0, 300))
def test_full_keeps_everything(tokens):
    full = kv.read("full").policy(None, slack=32)
    assert full == Policy(Segments(whole=True), Never(), "original", F16)
    assert alive(full, tokens, 7) == (list(range(tokens)), tokens)
    assert full.most_entries(tokens) == tokens


def test_streaming_without_sinks_at_original_positions_is_recent_only():
    raw = kv.read("streaming_llm").model_dump() | {"positions": "original"}
    raw["segments"]["sinks"] = 0
    assert PolicyRecipe(**raw).policy(64, 8) == kv.read("recent_only").policy(64, 8)


@given(st.integers(5, 2000), st.integers(0, 100))
def test_a_budget_becomes_segments_that_fill_it(budget, slack):
    policy = kv.read("streaming_llm").policy(budget, slack)
    assert policy.segments == Segments(sinks=4, recent=budget - 4)
    assert policy.segments.size == budget == policy.trigger.limit
    assert policy.positions == "compact"


@pytest.mark.parametrize(
    ("name", "composition"),
    [
        ("full", "everything | never | original positions | f16"),
        ("kv_q4_0", "everything | never | original positions | q4_0"),
        ("recent_only", "recent(rest of budget) | over(budget, slack) -> drop | original positions | f16"),
        ("streaming_llm", "sinks(4) + recent(rest of budget) | over(budget, slack) -> drop | compact positions | f16"),
    ],
)
def test_recipes_say_their_composition(name, composition):
    assert kv.read(name).composition == composition


def test_every_recipe_of_the_house_is_sound():
    for name in recipes.names("kv"):
        recipe = kv.read(name)
        assert recipe.paper
        assert not recipe.problem(256)
        recipe.policy(256, 32)


@pytest.mark.parametrize("budget", [1, 4])
def test_a_budget_must_exceed_the_sinks(budget):
    recipe = kv.read("streaming_llm")
    assert f"{budget} entries" in recipe.problem(budget)
    with pytest.raises(ConfigError, match="4 sinks"):
        recipe.policy(budget, 32)
    assert recipe.problem(5) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segments: {recent: rest, sink: 4}", "segments.sink: unknown key; did you mean 'sinks'"),
        ("segments: {recent: rest, sinks: -1}", "segments.sinks"),
        ("segments: {recent: some}", "segments.recent"),
        ("segments: {recent: all, sinks: 4}", "everything stays"),
        ("segments: {recent: rest}\nprecision: {k: q5_0}", "precision.k"),
        ("segments: {recent: rest}\npositions: fresh", "positions"),
        ("positions: original", "segments: missing"),
    ],
)
def test_a_recipe_that_does_not_fit_is_explained(text, message, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(f"paper: none\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        schema.read(path, PolicyRecipe)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("shape", "kind", "kib"),
    [
        (QWEN3_06B, "f16", 112),
        (QWEN3_06B, "f32", 224),
        (QWEN3_06B, "q8_0", 112 * 0.53125),
        (QWEN3_06B, "q4_0", 112 * 0.28125),
        (PYTHIA_28B, "f16", 320),
    ],
)
def test_bytes_of_an_entry(shape, kind, kib):
    assert Precision(kind, kind).kv_bytes(shape, 1) == kib * 1024
    assert Precision(kind, kind).kv_bytes(shape, 1000) == 1000 * kib * 1024


@given(st.sampled_from(["f32", "f16", "q8_0", "q4_0"]), st.sampled_from(["f32", "f16", "q8_0", "q4_0"]))
def test_keys_and_values_are_counted_apart(k, v):
    apart = Precision(k, v).kv_bytes(QWEN3_06B, 10)
    assert 2 * apart == Precision(k, k).kv_bytes(QWEN3_06B, 10) + Precision(v, v).kv_bytes(QWEN3_06B, 10)
    assert Precision(k, v).quantised == ({k, v} & {"q8_0", "q4_0"} != set())


def test_a_block_must_divide_the_head():
    assert list(F16.problems(PYTHIA_28B)) == []
    assert list(Precision("q4_0", "q4_0").problems(QWEN3_06B)) == []
    found = list(Precision("q8_0", "q4_0").problems(PYTHIA_28B))
    assert len(found) == 2
    assert all("32 values a block" in problem and "80" in problem for problem in found)
