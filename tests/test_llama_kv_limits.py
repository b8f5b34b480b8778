"""The engine of GGUF files at its limits: bytes that are measured, room that ends, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import schema
from pipeline.benching.trial import kv_bytes
from pipeline.engines.cache import Room, Watch
from pipeline.engines.llama.context import ContextFull
from pipeline.engines.llama.kv import Flash, LlamaKvEngine
from pipeline.engines.prompt import prefilled
from pipeline.engines.stream import Stream, room
from pipeline.errors import ConfigError, UserError
from pipeline.kv import recipe
from pipeline.kv.policy import FULL
from pipeline.kv.precision import Precision

from .llama_kv_runs import F32, LAYERS, random_ids, small
from .one_layer import WIDTH, write_gguf

pytest_plugins = ["tests.llama_kv_models"]

TYPES = [("f32", "f32"), ("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "q4_0"), ("f32", "f16")]


@pytest.fixture
def other(tmp_path):
    """A function that opens a one-layer model of another architecture."""
    engines = []

    def opened(architecture: str) -> LlamaKvEngine:
        write_gguf(tmp_path / f"{architecture}.gguf", WIDTH // 2, architecture)
        engines.append(LlamaKvEngine(tmp_path / f"{architecture}.gguf", threads=1))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


def everything(count: int) -> np.ndarray:
    return np.ones(count, bool)


@pytest.mark.parametrize(("k", "v"), TYPES)
@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "streaming_llm", "pyramid_l2_linear"])
def test_measured_bytes_are_the_accounted_ones(llama, name, k, v):
    policy, ids = small(name, precision=Precision(k, v)), random_ids(110)
    cache = llama.cache(room(llama, policy, 100, len(ids)))
    stream = Stream(llama, cache, policy)
    assert cache.kv_bytes() == 0
    if policy.online:
        stream.feed(ids[:100])
    else:
        stream.take(prefilled(llama, ids[:100], policy))
    for token in ids[100:]:
        stream.feed([token])
        assert cache.kv_bytes() == kv_bytes(llama, policy.precision, stream.lives)
    assert (len(set(stream.lives)) > 1) == name.startswith("pyramid")
    assert cache.kv_bytes() < policy.precision.kv_bytes(llama.shape, len(ids))
    cache.close()


def test_a_long_prompt_lives_on_in_a_small_cache(llama, reference):
    """Of 1,000 entries 64 stay; the cache they move to ends at 256 cells."""
    ids = np.random.default_rng(4).integers(0, 500, 1200).tolist()
    policy = replace(recipe.read("snapkv").policy(64, 0, LAYERS), precision=F32)
    prompt = prefilled(llama, ids[:1000], policy)
    wanted = room(llama, policy, 1000, 1150)
    assert prompt.lives == [1000] * LAYERS
    assert wanted.cells == (64 + 150,) * LAYERS
    cache = llama.cache(wanted)
    stream = Stream(llama, cache, policy)
    stream.take(prompt)
    found = np.concatenate([stream.feed([token]) for token in ids[1000:1150]])
    stream.feed(ids[1150 : 1000 + 256 - 64])
    with pytest.raises(ContextFull, match="256 cells"):
        stream.feed([ids[1192]])
    cache.close()
    exact = replace(policy, precision=Precision())
    stream = Stream(reference, reference.cache(room(reference, exact, 1000, 1150)), exact)
    stream.take(prefilled(reference, ids[:1000], exact))
    true = np.concatenate([stream.feed([token]) for token in ids[1000:1150]])
    assert np.abs(found - true).max() < 2e-3
    assert (found.argmax(1) == true.argmax(1)).all()


def test_a_cache_that_is_too_small_says_so(llama):
    ids = random_ids(300)
    cache = llama.cache(Room((256,) * LAYERS, F32))
    cache.append(ids[:250], 0, everything(250), Watch())
    with pytest.raises(ContextFull, match="no room for 7 tokens in a cache of 256 cells"):
        cache.append(ids[250:257], 250, everything(7), Watch())
    cache.close()
    prompt = prefilled(llama, ids, replace(FULL, precision=F32))
    cache = llama.cache(Room((256,) * LAYERS, F32))
    with pytest.raises(ContextFull, match="does not fit into 256 cells"):
        cache.write(prompt.layers, prompt.upcoming)
    cache.close()


def test_quantised_caches_show_no_attention_rows(llama):
    for precision in (Precision("q8_0", "q8_0"), Precision("f16", "q4_0")):
        with pytest.raises(UserError, match=f"a cache in {precision.k}/{precision.v} needs flash attention"):
            llama.cache(Room((256,) * LAYERS, precision, rows=True))
        policy = small("h2o", precision=precision)
        with pytest.raises(UserError, match="take a policy that does not sum attention, or f16"):
            prefilled(llama, random_ids(20), policy)


@pytest.mark.parametrize("flash", [Flash(False, False), Flash(True, True)])
@pytest.mark.parametrize("prefill", [False, True])
def test_rows_are_shown_whatever_the_setting(llama, flash, prefill):
    seen = {}
    cache = llama.with_flash(flash).cache(Room((256,) * LAYERS, prefill=prefill, rows=True))
    watch = Watch(rows=lambda layer, rows: seen.update({layer: rows.sum(-1)}))
    cache.append(random_ids(30), 0, everything(30), watch)
    assert sorted(seen) == list(range(LAYERS))
    assert all((sums - 1).abs().max() < 1e-4 and sums.shape == (4, 30) for sums in seen.values())
    cache.close()


@pytest.mark.parametrize(("name", "budget"), [("streaming_llm", 4), ("snapkv", 32), ("h2o_l2", 4), ("fastkv", 8)])
def test_a_budget_smaller_than_what_always_stays_is_refused(name, budget):
    with pytest.raises(ConfigError, match=f"budget of {budget}"):
        recipe.read(name).policy(budget, 0, LAYERS)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("paper: x\nonlin: true\n", "onlin: unknown key; did you mean 'online'"),
        (
            "paper: x\ndecode: {keep: {sinkz: 4, recent: rest}}\n",
            "decode.keep.sinkz: unknown key; did you mean 'sinks'",
        ),
        ("paper: x\nprecision: {k: q3_0}\n", "precision.k: .*'q8_0'"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, text, hint):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=hint):
        schema.read(tmp_path / "mine.yaml", recipe.PolicyRecipe)


def test_an_architecture_that_cannot_be_cut_takes_policies_of_one_size(other):
    engine = other("internlm2")
    with pytest.raises(UserError, match="architecture internlm2 cannot be cut into parts"):
        engine.cache(Room((256,), bounds=(1,)))
    cache = engine.cache(Room((256,)))
    assert np.isfinite(cache.append([1, 2, 3], 0, everything(3), Watch())[0]).all()
    cache.close()


def test_an_architecture_that_cannot_skip_positions_narrows_no_states(other):
    engine = other("llama")
    pieces = engine.pieces([], Precision(), 8)
    states = pieces.embed(list(range(8)))
    with pytest.raises(UserError, match="cannot skip positions"):
        pieces.run(0, states[:3], np.array([0, 2, 3]), 0)
    pieces.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_keys_are_turned_as_llama_cpp_turns_them(llama, other, architecture):
    """llama.cpp pairs a head's values side by side for some architectures, by halves for others."""
    engine = other("llama") if architecture == "llama" else llama
    cells, token, places = (256,) * engine.shape.layers, WIDTH // 2, (3, 90)
    keys = []
    for place in places:
        cache = engine.cache(Room(cells, F32))
        cache.append([token], place, everything(1), Watch())
        keys.append(cache.read()[0].keys())
        cache.close()
    assert (keys[0] - keys[1]).abs().max() > 0.1
    moved = engine.rope.rotate(keys[0], torch.full(keys[0].shape[:2], places[1] - places[0]))
    assert (moved - keys[1]).abs().max() < 1e-4
