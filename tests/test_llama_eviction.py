"""Keys and values of llama.cpp's KV state are transformers', and so is eviction per layer and KV head."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import state

from .llama_states import (
    MORE,
    STORED,
    TOKENS,
    continued,
    opened,
    prefilled,
    random_keep,
    relative,
    torch_cache,
    torch_continued,
    torch_evicted,
)

pytest_plugins = ["tests.gguf_models", "tests.llama_state_models"]


@pytest.mark.parametrize(("kind", "flash"), STORED)
def test_keys_and_values_are_those_of_transformers(model, torch_model, shape, ids, kind, flash):
    cache = torch_cache(torch_model, ids)
    near = {"f32": 1e-5, "f16": 1e-3, "q8_0": 0.012, "q4_0": 0.15}[kind]
    layers = state.parse(prefilled(model, ids, kind, flash), shape)
    for layer, expected in zip(layers, cache.layers, strict=True):
        if flash and layer is not layers[0]:
            near = max(near, 1e-3)  # what the attention below rounded
        for found, true in ((layer.keys_f32(), expected.keys), (layer.values_f32(), expected.values)):
            assert found.flags.c_contiguous
            assert found.dtype == np.float32
            assert relative(found, true[0].numpy()) < near


@pytest.mark.parametrize("flash", [True, False])
def test_a_cache_goes_on_as_transformers_does_with_its_keys_and_values(model, torch_model, shape, ids, flash):
    import torch

    layers = state.parse(prefilled(model, ids, "f32", flash), shape)
    with opened(model, "f32", False) as context:
        context.restore(state.build(layers, np.arange(TOKENS), True))
        found = continued(context, ids)
    cache = torch_cache(torch_model, ids)
    for layer, target in zip(layers, cache.layers, strict=True):
        target.keys = torch.tensor(layer.keys_f32())[None]
        target.values = torch.tensor(layer.values_f32())[None]
    assert np.abs(found - torch_continued(torch_model, ids, cache)).max() < 2e-4


@pytest.mark.parametrize(("kind", "flash"), STORED)
def test_each_head_keeps_its_own_entries(model, shape, ids, kind, flash):
    data = prefilled(model, ids, kind, flash)
    for layer, keep in zip(state.parse(data, shape), random_keep(shape, 23), strict=True):
        keep[0] = keep[0][::-1]  # the order is the caller's
        gathered = layer.gather(keep)
        assert (gathered.entries, gathered.transposed) == (23, layer.transposed)
        for whole, found in (
            (layer.keys_f32(), gathered.keys_f32()),
            (layer.values_f32(), gathered.values_f32()),
        ):
            assert found.shape == (shape.kv_heads, 23, 64)
            assert np.array_equal(found, np.stack([whole[head][keep[head]] for head in range(shape.kv_heads)]))


def test_an_entry_that_does_not_exist_is_an_error(model, shape, ids):
    layer = state.parse(prefilled(model, ids, "f16", True), shape)[0]
    with pytest.raises(IndexError, match=f"0 to {TOKENS} of {TOKENS}"):
        layer.gather(np.array([[0], [TOKENS]]))


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize(("target", "near"), [(False, 2e-3), (True, 5e-3)])
def test_eviction_per_layer_and_head_is_transformers_eviction(model, torch_model, shape, ids, flash, target, near):
    kept = 24
    keep = random_keep(shape, kept)
    layers = state.parse(prefilled(model, ids, "f32", flash), shape)
    gathered = [layer.gather(entries) for layer, entries in zip(layers, keep, strict=True)]
    with opened(model, "f32", target) as context:
        context.restore(state.build(gathered, np.arange(TOKENS - kept, TOKENS), not target))
        found = continued(context, ids)
        assert state.parse(context.state(), shape)[0].entries == kept + MORE
    expected = torch_continued(torch_model, ids, torch_evicted(torch_model, ids, keep))
    assert np.abs(found - expected).max() < near
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    full = torch_continued(torch_model, ids, torch_cache(torch_model, ids))
    assert np.abs(found - full).max() > 0.02, "eviction must show"
