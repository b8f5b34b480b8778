"""Recipes of KV-cache policies: each one is sound, says what it is made of, and a wrong one is explained."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipes, schema
from pipeline.errors import ConfigError
from pipeline.kv import recipe as kv
from pipeline.kv.policy import FULL
from pipeline.kv.positions import Clamped, Compact
from pipeline.kv.precision import F16, CacheShape, Precision
from pipeline.kv.recipe import PolicyRecipe

LAYERS = 8
QWEN3_06B = CacheShape(layers=28, kv_heads=8, key_length=128, value_length=128)
PYTHIA_28B = CacheShape(layers=32, kv_heads=32, key_length=80, value_length=80)
KINDS = ["f32", "f16", "q8_0", "q4_0"]


@pytest.mark.parametrize("name", recipes.names("kv"))
def test_every_recipe_of_the_house_is_sound(name):
    recipe = kv.read(name)
    assert recipe.paper
    assert recipe.unheld() is None
    assert list(recipe.problems(256, LAYERS)) == []
    policy = recipe.policy(256, 32, LAYERS)
    assert policy.budget == (256 if recipe.budgeted else None)
    assert recipe.composition.count("|") >= 1
    assert pickle.loads(pickle.dumps(policy)).budget == policy.budget  # bench hands it to processes of its own


def test_no_two_recipes_are_the_same_policy():
    lines = [kv.read(name).composition for name in recipes.names("kv")]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("name", "composition"),
    [
        ("full", "everything | original positions | f16"),
        ("kv_q4_0", "everything | original positions | q4_0"),
        (
            "streaming_summary",
            "always: sinks(4) + summary(25 %, the model's of 256, every 256 to 6144 evicted) + recent(rest) = budget"
            " | compact positions | f16",
        ),
        ("recent_only", "always: recent(rest) = budget | original positions | f16"),
        ("streaming_llm", "always: sinks(4) + recent(rest) = budget | compact positions | f16"),
        (
            "snapkv",
            "prompt's end: recent(32) + best for a KV head (attention of the last 32 queries, average pool 5) = budget"
            " | original positions | f16",
        ),
        (
            "infllm",
            "always: sinks(4) + recent(60 %) + best for a layer (q.k of the last 16 queries with the 4 most attended"
            " keys of blocks of 16) = budget | what goes lives on in host memory and may come back"
            " | clamped(0.6 x budget) positions | f16",
        ),
    ],
)
def test_recipes_say_their_composition(name, composition):
    assert kv.read(name).composition == composition


def test_reading_and_listing_recipes_loads_no_torch():
    read = "from pipeline.kv import recipe; recipe.read('snapkv').composition"
    code = f"import sys; {read}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_full_kv_is_the_policy_without_parts():
    assert kv.read("full").policy(256, 32, LAYERS) == FULL


def test_positions_and_slack_come_of_the_recipe():
    assert kv.read("streaming_llm").policy(64, 7, LAYERS).positions == Compact()
    assert kv.read("lm_infinite").policy(64, 7, LAYERS).positions == Clamped(64)
    assert kv.read("tova").policy(64, 7, LAYERS).slack == 7
    assert kv.read("semantic_block").policy(64, 7, LAYERS).slack == 15
    assert kv.read("context_shift").policy(300, 7, LAYERS).slack == 99


@pytest.mark.parametrize(
    ("name", "budget", "least"), [("streaming_llm", 4, 5), ("snapkv", 32, 33), ("scissorhands", 20, 30), ("tova", 1, 2)]
)
def test_a_budget_must_exceed_what_always_stays(name, budget, least):
    recipe = kv.read(name)
    with pytest.raises(ConfigError, match=f"a budget of {budget} leaves .* but what always stays needs"):
        recipe.policy(budget, 32, LAYERS)
    recipe.policy(least, 32, LAYERS)


def test_a_summary_takes_its_room_of_the_budget():
    recipe = kv.read("streaming_summary")
    assert list(recipe.problems(7, LAYERS)) == []
    assert "a budget of 3 leaves" in (problem := next(recipe.problems(4, LAYERS)))
    assert "the summary takes 1 of 4" in problem
    summary = recipe.policy(256, 32, LAYERS).summary
    assert (summary.tokens, summary.reads, summary.precision) == (64, 256, Precision("q4_0", "q4_0"))
    assert [summary.due(made) for made in (0, 1, 2, 3, 99)] == [256, 1024, 4096, 6144, 6144]
    raw = recipe.model_dump() | {"summary": {"mode": "none", "tokens": 10, "after": 9}}
    summary = PolicyRecipe(**raw).policy(64, 32, LAYERS).summary
    assert (summary.tokens, summary.due(0), summary.reads, summary.shifts) == (10, 9, None, False)
    raw = recipe.model_dump() | {"summary": {"mode": "model", "tokens": 0.5, "after": 4.0, "reads": 1.5}}
    summary = PolicyRecipe(**raw).policy(64, 32, LAYERS).summary
    assert (summary.tokens, summary.after, summary.reads) == (32, 256, 96)


def test_a_layer_that_the_model_lacks_is_named():
    assert list(kv.read("h2o_l2").problems(256, 1)) == ["decode.skip: layer 1, but the model's layers are 0 to 0"]


def test_a_block_that_leaves_the_window_needs_room():
    with pytest.raises(ConfigError, match="a budget of 32 leaves 9 entries to blocks of 16, which need 15 at least"):
        kv.read("infllm").policy(32, 0, LAYERS)
    kv.read("infllm").policy(48, 0, LAYERS)


HOST = "online: true\nevicted: host"
BY_BLOCKS = "score: {by: {signal: similarity, queries: 4, block: 4}, share: layer}"
SUMS = "{by: {signal: attention_so_far, gather: sums}}"
SUMMARY = "{mode: model, tokens: 8, after: 8}"
STREAMING = "decode: {keep: {sinks: 4, recent: rest}}\nonline: true"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("decode: {keep: {recent: rest, sink: 4}}", ["decode.keep.sink: unknown key; did you mean 'sinks'"]),
        ("decode: {keep: {recent: rest, sinks: -1}}", ["decode.keep.sinks"]),
        ("decode: {keep: {recent: some}}", ["decode.keep.recent"]),
        ("decode: {keep: {recent: 4}}", ["`recent: rest` without a score"]),
        ("decode: {keep: {recent: 4}, score: {by: {signal: key_norms}}}", ["no such part, 'key_norms'", "'key_norm'"]),
        (
            "decode: {keep: {recent: 4}, score: {by: {signal: attention, querys: 4}}}",
            ["attention.queries: missing", "querys: unknown key; did you mean 'queries'"],
        ),
        ("decode: {keep: {}, score: {by: {signal: attention_so_far, gather: hits}}}", ["needs a history"]),
        ("decode: {keep: {recent: rest}, sizes: {shape: pyramids}}", ["no such part, 'pyramids'", "'pyramid'"]),
        ("decode: {keep: {}, score: {by: {signal: logit}, pool: {kind: average, width: 4}}}", ["no middle"]),
        ("decode: {keep: {}, score: {by: {signal: logit}, share: model}, skip: [0]}", ["layers of one size"]),
        ("precision: {k: q5_0}", ["precision.k"]),
        ("positions: fresh", ["positions"]),
        ("online: true", ["there is no `decode`"]),
        (
            f"narrow: {{scope: hidden, score: {{by: {{signal: logit}}}}}}\ndecode: {{keep: {{}}, score: {SUMS}}}",
            ["shows no attention to sum"],
        ),
        (f"decode: {{keep: {{}}, {BY_BLOCKS}}}\nevicted: host", ["`decode` that is online"]),
        (f"decode: {{keep: {{}}, {BY_BLOCKS}}}\n{HOST}\npositions: compact", ["positions to come back to"]),
        (f"decode: {{keep: {{}}, {BY_BLOCKS}, skip: [0]}}\n{HOST}", ["layers of one size"]),
        (
            f"decode: {{keep: {{}}, score: {{by: {{signal: key_norm}}, share: layer}}}}\n{HOST}",
            ["takes back whole blocks"],
        ),
        (f"decode: {{keep: {{}}, {BY_BLOCKS.replace('layer', 'head')}}}\n{HOST}", ["`share: layer`"]),
        (
            "decode: {keep: {}, score: {by: {signal: representatives, queries: 4, block: 4}}}\nonline: true",
            ["on the host alone"],
        ),
        (
            "decode: {keep: {}, score: {by: {signal: representatives, queries: 4, block: 4, keys: 5}}}",
            ["5 keys cannot stand for a block of 4"],
        ),
        ("evicted: hosts", ["evicted", "'host'"]),
        ("narrow: {scope: input, score: {by: {signal: logit}}}", ["give its depth"]),
        (f"summary: {SUMMARY}", ["need `online: true`"]),
        (f"{STREAMING}\nsummary: {SUMMARY}", ["compact positions"]),
        (f"{STREAMING}\npositions: compact\nsummary: {{mode: modle, tokens: 8, after: 8}}", ["summary.mode"]),
        (f"{STREAMING}\npositions: compact\nsummary: {SUMMARY}\nrebuild: reprefill", ["take `rebuild` out"]),
        (
            "decode: {keep: {recent: 4}, score: {by: {signal: key_norm}}}\nonline: true\npositions: compact\n"
            "rebuild: reprefill",
            ["`share: model`"],
        ),
        (
            f"decode: {{keep: {{recent: 4}}, score: {SUMS[:-1]}, share: model}}}}\nonline: true\npositions: compact\n"
            f"summary: {SUMMARY}",
            ["attention so far is lost"],
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_explained(text, messages, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(f"paper: none\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        schema.read(path, PolicyRecipe)
    assert all(message in str(error.value) for message in [*messages, str(path)])


def test_attention_sums_and_quantised_values_do_not_go_together():
    for name in ("h2o", "infllm"):
        raw = kv.read(name).model_dump() | {"precision": {"k": "q8_0", "v": "q8_0"}}
        assert "shows no attention to sum" in PolicyRecipe(**raw).unheld()


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


@given(st.sampled_from(KINDS), st.sampled_from(KINDS))
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
