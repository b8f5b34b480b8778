"""speed on a tiny random model: every figure has its rows and bounds, the model is made once, turns are fair."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import yaml

from pipeline import io, speed
from pipeline.engines.cache import Room, Watch
from pipeline.errors import UserError
from pipeline.kv.precision import F16, Precision
from pipeline.timing import figures, model, trials
from pipeline.timing.clock import TimedCache, TimedEngine
from pipeline.timing.settings import Settings
from tests.conftest import ROOT

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
TINY = Settings(
    model="tiny", encodings=("Q8_0", "F16"), depths=(256, 512), budget=64, slack=7, tokens=4, blocks=2, takes=1
)
ENTRY = 4 * 2 * (64 + 64) * 2  # bytes of an entry in f16: layers, KV heads, key and value, bytes a number


def write_recipe(tokenizer, **changes) -> None:
    naming = {"basename": "Tiny", "size_label": "1M", "license": "apache-2.0", "languages": ["zh"], "summary": "s"}
    recipe = {"source": "random", "tokenizer": str(tokenizer), "config": SHAPE | changes, **naming}
    io.write_text("recipes/models/tiny.yaml", yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def workplace(tiny_model_dir, tmp_path_factory):
    """The current directory: recipes, the tiny one among them, and nothing made yet."""
    directory = tmp_path_factory.mktemp("speed")
    (directory / "recipes/models").mkdir(parents=True)
    for kind in ("kv", "quantize"):
        (directory / "recipes" / kind).symlink_to(ROOT / "recipes" / kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        write_recipe(tiny_model_dir)
        yield directory


@pytest.fixture(scope="module")
def result(workplace, params) -> dict:
    """The JSON of one run, shared: read it, do not change it."""
    speed.main(params, TINY)
    return io.read_json("eval/bench/speed.json")


@pytest.fixture(scope="module")
def engines(workplace, params):
    """The tiny model's engines."""
    with trials.loaded(model.provide("tiny", "Q8_0", params), threads=1) as found:
        yield found


def rows(result: dict, figure: str) -> list[dict]:
    return [row for row in result["rows"] if row["figure"] == figure]


def test_every_figure_has_its_rows(result):
    assert Counter(row["figure"] for row in result["rows"]) == {
        "step": 18, "prefill": 5, "decode": 15, "narrowed": 2, "compression": 5, "online": 3, "memory": 2,
        "handed over": 1,
    }  # fmt: skip
    assert len(result["rows"]) == figures.planned(TINY)
    decoded = {(row["depth"], row["encoding"]) for row in rows(result, "decode")}
    assert decoded == {(256, "Q8_0"), (512, "Q8_0"), (512, "F16")}
    assert {(row["depth"], row["flash_attention"]) for row in rows(result, "prefill")} == {
        (128, "off"), (128, "on"), (256, "off"), (256, "on"), (512, "on")
    }  # fmt: skip
    assert result["machine"]["cores"]
    assert result["settings"]["weights"].startswith("random")


def test_times_and_ratios_are_of_the_same_run(result):
    for depth, encoding in ((256, "Q8_0"), (512, "Q8_0"), (512, "F16")):
        found = [row for row in rows(result, "decode") if (row["depth"], row["encoding"]) == (depth, encoding)]
        full = [row["ratio_to_full"]["value"] for row in found if row["policy"] == "full"]
        assert 1.0 in full  # the faster one beside itself
        assert all(0 < row["tpot_ms_median"]["value"] <= row["tpot_ms_p95"]["value"] for row in found)
        assert all(row["tpot_ms_median"]["n"] == TINY.tokens * TINY.blocks for row in found)


def test_the_fastest_pair_is_recorded(result):
    assert result["fastest"].keys() == {"prefill", "decode"}
    assert result["fastest"]["prefill"]["depth"] == 256
    assert result["fastest"]["decode"]["depth"] == 512


def test_the_fastest_is_that_of_the_deepest_comparison():
    def row(depth, flash, seconds):
        own = {"figure": "prefill", "policy": "full", "encoding": "Q4_0", "depth": depth, "flash_attention": flash}
        return own | {"seconds": {"value": seconds}}

    rows = [row(1, "off", 1), row(1, "on", 2), row(2, "off", 5), row(2, "on", 4), row(3, "on", 9)]
    assert speed.fastest(rows, "prefill", "seconds") == {
        "flash_attention": "on", "depth": 2, "encoding": "Q4_0", "seconds": {"value": 4}
    }  # fmt: skip


def test_bytes_are_measured_and_accounted(result):
    memory = {(row["policy"], row["flash_attention"]): row for row in rows(result, "decode") if row["depth"] == 512}
    assert memory["full", "off"]["kv_bytes"]["value"] == memory["full", "on"]["kv_bytes"]["value"] == 512 * ENTRY
    assert memory["snapkv", "off"]["kv_bytes"]["value"] == 64 * ENTRY
    assert memory["kv_q8_0", "on"]["kv_bytes"]["value"] == 512 * ENTRY * 34 // 64
    for row in result["rows"]:
        if "kv_bytes" in row:
            assert row["kv_bytes"]["value"] == row["kv_bytes_accounted"]["value"]


def test_memory_falls_when_a_prompt_is_handed_over(result):
    (row,) = rows(result, "handed over")
    assert row["kv_bytes"]["value"] == 64 * ENTRY
    assert row["rss_before"]["value"] > row["rss_after"]["value"] > 0


def test_computed_shares_are_those_of_the_policies(result):
    shares = {row["policy"]: row["computed"]["value"] for row in rows(result, "narrowed") + rows(result, "online")}
    assert shares["fastkv"] == pytest.approx((2 * 256 + 2 * 51) / (4 * 256))
    assert shares["gemfilter"] == pytest.approx((1 * 256 + 4 * 25) / (4 * 256))
    assert shares["streaming_llm"] == 1.0


def test_bounds_are_told_and_none_fails(result):
    assert len(result["bounds"]) == 8 + 5 + 2 + 3
    for bound in result["bounds"]:
        assert bound["holds"] == (bound["value"]["value"] <= bound["bound"])


def test_the_model_is_made_once_and_anew_for_another_recipe(result, params, tiny_model_dir):
    path = model.provide("tiny", "Q8_0", params)
    assert path.name == "Tiny-1M-untrained-Q8_0.gguf"
    made = path.stat().st_mtime_ns
    assert model.provide("tiny", "Q8_0", params).stat().st_mtime_ns == made
    write_recipe(tiny_model_dir, intermediate_size=192)
    try:
        assert model.provide("tiny", "Q8_0", params).stat().st_mtime_ns > made
    finally:
        write_recipe(tiny_model_dir)


def test_formats_that_llama_cpp_does_not_run_are_refused(workplace, params):
    with pytest.raises(UserError, match="--encodings: FP8-Dynamic is a compressed format"):
        model.provide("tiny", "FP8-Dynamic", params)


def test_depths_beyond_the_context_are_refused(engines):
    with pytest.raises(UserError, match=r"--depths: 1001 and 24 .* take at most 1000"):
        speed.tokens(Settings(depths=(1001,), tokens=10, blocks=2), engines.on.model, 0)


def test_the_command_line_names_depths_tokens_and_encodings():
    found = speed.parse(["--depths", "64", "128", "--tokens", "4", "--encodings", "F16"])
    assert (found.depths, found.tokens, found.encodings) == ((64, 128), 4, ("F16",))
    assert found.shallow == (32, 64)
    assert speed.parse([]) == Settings()
    with pytest.raises(SystemExit):
        speed.parse(["--tokens", "0"])


def test_streams_warm_up_and_then_take_turns_by_blocks():
    order = []

    class Fed:
        def __init__(self, name):
            self.name = name

        def feed(self, ids):
            order.append((self.name, *ids))
            time.sleep(0.05 if ids[0] == 0 else 0.001)

    times = trials.decode({"a": Fed("a"), "b": Fed("b")}, range(5), Settings(tokens=2, blocks=2, warmup=1))
    turns = [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 3), ("b", 4)]
    assert order == turns
    assert times["a"].shape == (2, 2)
    assert np.median(times["a"]) < 0.05


def test_clocks_pass_everything_through(engines):
    clock: Counter[str] = Counter()
    ids, newest = list(range(8)), np.arange(8) == 7
    found = []
    for engine in (engines.on, TimedEngine(engines.on, clock)):
        cache = engine.cache(Room((8,) * 4, queries=True))
        logits, queries = cache.append(ids, 0, newest, Watch(queries=2))
        found.append((logits, queries, cache.read(), cache.kv_bytes()))
        cache.close()
    (plain, seen, layers, size), (timed, also_seen, copied, also_size) = found
    assert isinstance(cache, TimedCache)
    assert (plain == timed).all()
    assert all((a == b).all() for a, b in zip(seen, also_seen, strict=True))
    assert all((a.keys() == b.keys()).all() for a, b in zip(layers, copied, strict=True))
    assert size == also_size == 8 * ENTRY
    assert clock["append"] > 0
    assert clock["read"] > 0


def test_a_prompt_in_other_types_says_the_same(engines):
    prompt = trials.prefill(engines.off, list(range(64))).snapshot
    assert trials.stored_as(prompt, F16) is prompt
    rounded = trials.stored_as(prompt, Precision("q8_0", "q8_0"))
    for layer, exact in zip(rounded.layers, prompt.layers, strict=True):
        assert layer.stored.k_kind == layer.stored.v_kind == "q8_0"
        for got, expected in (
            (layer.stored.keys_f32(), exact.stored.keys_f32()),
            (layer.stored.values_f32(), exact.stored.values_f32()),
        ):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
