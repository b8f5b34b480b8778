"""The transformers engine of policies: blocks, rows, queries, entries read and written, pieces, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from pipeline.config import Runtime
from pipeline.engines.cache import Room, Watch
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.errors import UserError
from pipeline.kv.precision import Precision
from tests.kv_models import LAYERS, MODELS, SIZES, causal_view, kv_heads, look, qwen3, random_ids

N = 96
BOTH = pytest.mark.parametrize("model", MODELS)


@BOTH
@pytest.mark.parametrize("watched", [False, True])
def test_blocks_of_any_size_give_the_models_logits(model, watched):
    model, ids = MODELS[model](), random_ids(N)
    view = causal_view(model, N)
    expected = look(model, ids, view).numpy()
    cache = TorchKvEngine(model).cache(Room((N,) * LAYERS, rows=watched))
    found, seen, at = [], [], 0
    for count in (50, 1, 7, 1, 37):
        rows: dict[int, torch.Tensor] = {}
        wanted = np.arange(count) % 2 == 0
        logits, queries = cache.append(
            ids[at : at + count], at, wanted, Watch(2, rows.__setitem__ if watched else None)
        )
        at += count
        found.append(np.abs(logits - expected[at - count : at][wanted]).max())
        seen.append([layer.shape for layer in queries])
        if watched:
            assert list(rows) == list(range(LAYERS))
            assert all((rows[i] - view.rows[i][:, at - count : at, :at]).abs().max() < 1e-5 for i in rows)
    assert max(found) < 1e-4
    assert seen[0] == [(4, 2, 16)] * LAYERS
    assert seen[1] == [(4, 1, 16)] * LAYERS


@BOTH
def test_keys_and_queries_are_turned_by_the_engines_rope(model):
    model, ids = MODELS[model](), random_ids(20)
    engine, view, places = TorchKvEngine(model), causal_view(model, 20), torch.arange(20)
    look(model, ids, view)
    cache = engine.cache(Room((20,) * LAYERS))
    _, queries = cache.append(ids, 0, np.arange(20) == 19, Watch(3))
    for layer, keys in enumerate(cache.read()):
        assert (engine.rope.rotate(keys.keys(), -places) - view.keys[layer]).abs().max() < 1e-4
        assert (engine.rope.rotate(queries[layer], -places[-3:]) - view.queries[layer][:, -3:]).abs().max() < 1e-4


@BOTH
def test_what_is_read_can_be_written_elsewhere_layers_of_unequal_length(model):
    model, ids = MODELS[model](), random_ids(30)
    engine = TorchKvEngine(model)
    caches = [engine.cache(Room((30,) * LAYERS)) for _ in range(2)]
    caches[0].append(ids[:20], 0, np.arange(20) == 19, Watch())
    layers = [layer.gather(torch.arange(i, 20).expand(kv_heads(model), -1)) for i, layer in enumerate(caches[0].read())]
    for cache in caches:
        cache.write(layers, 20)
    after = [cache.append(ids[20:], 20, np.ones(10, bool), Watch())[0] for cache in caches]
    assert [layer.entries for layer in caches[1].read()] == [30, 29, 28, 27]
    assert np.array_equal(*after)
    moved = layers[0].with_keys(layers[0].keys() + 1)
    assert torch.equal(moved.keys(), layers[0].keys() + 1)
    assert torch.equal(moved.values, layers[0].values)
    older, newer = (layers[0].gather(torch.arange(*ends).expand(kv_heads(model), -1)) for ends in ((0, 5), (5, 20)))
    assert torch.equal(older.joined(newer).stored, layers[0].stored)
    assert torch.equal(older.joined(newer).values, layers[0].values)


@BOTH
@pytest.mark.parametrize("bounds", [[], [1], [1, 2, 3]])
def test_pieces_are_the_model(model, bounds):
    model, ids = MODELS[model](), random_ids(40)
    expected = look(model, ids, causal_view(model, 40)).numpy()
    engine = TorchKvEngine(model)
    pieces = engine.pieces(bounds, Precision(), 40)
    states, found = pieces.embed(ids), []
    for piece in range(len(bounds) + 1):
        states, layers, queries = pieces.run(piece, states, np.arange(40), 5)
        assert len(queries) == len(layers)
        found += layers
    cache = engine.cache(Room((40,) * LAYERS))
    cache.append(ids, 0, np.arange(40) == 39, Watch())
    assert states.shape == (1, 128)
    assert np.abs(states - expected[-1]).max() < 1e-4
    assert all((a.keys() - b.keys()).abs().max() < 1e-4 for a, b in zip(found, cache.read(), strict=True))


def test_an_engine_opens_a_directory(tmp_path):
    qwen3().save_pretrained(tmp_path)
    ids = random_ids(20)
    cache = TorchKvEngine.open(tmp_path, Runtime(seed=0, threads=1)).cache(Room((20,) * LAYERS))
    logits, _ = cache.append(ids, 0, np.ones(20, bool), Watch())
    assert np.abs(logits - look(qwen3(), ids, causal_view(qwen3(), 20)).numpy()).max() < 1e-4


def test_what_the_engine_cannot_do_is_said():
    engine = TorchKvEngine(qwen3())
    with pytest.raises(UserError, match="q8_0 keys"):
        engine.cache(Room((8,) * LAYERS, Precision("q8_0", "f16")))
    with pytest.raises(UserError, match="f32"):
        engine.pieces([1], Precision("q4_0", "q4_0"), 8)
    with pytest.raises(RuntimeError, match="9 entries"):
        engine.cache(Room((8,) * LAYERS)).append(random_ids(9), 0, np.ones(9, bool), Watch())
    engine.cache(Room((8,) * LAYERS, Precision("f32", "f32")))
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UserError, match="linear"):
        TorchKvEngine(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=scaled)))


def test_a_model_with_a_sliding_window_is_refused():
    model = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8))
    cache = TorchKvEngine(model).cache(Room((8,) * LAYERS))
    with pytest.raises(UserError, match="sliding_window 8"):
        cache.append(random_ids(4), 0, np.ones(4, bool), Watch())
