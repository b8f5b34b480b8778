"""Stored types of llama.cpp's KV cache: its encoding and decoding, and the rotation of quantised heads."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import codec, library, state

from .llama_states import KINDS, TOKENS, prefilled, relative
from .one_layer import WIDTH, write_gguf

pytest_plugins = ["tests.gguf_models", "tests.llama_state_models"]


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_is_what_llama_cpp_stores(model, shape, ids, kind, monkeypatch):
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")  # so that both caches are given the same values
    exact = state.parse(prefilled(model, ids, "f32", True), shape)[0]
    stored = state.parse(prefilled(model, ids, kind, True), shape)[0]
    assert codec.encode_heads(kind, exact.keys_f32().swapaxes(0, 1), "k").tobytes() == stored.keys.tobytes()
    assert codec.encode_heads(kind, exact.values_f32().swapaxes(0, 1), "v").tobytes() == stored.values.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_ggufs_and_encoding_undoes_it(model, shape, ids, kind):
    import gguf

    stored = state.parse(prefilled(model, ids, kind, True), shape)[1].keys
    values = codec.decode(kind, stored)
    number = gguf.GGMLQuantizationType[kind.upper()]
    assert values.tobytes() == gguf.quants.dequantize(stored, number).astype(np.float32).tobytes()
    assert codec.encode(kind, values).tobytes() == stored.tobytes()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_blocks_of_zeros_and_of_ties_are_encoded(kind):
    values = np.zeros((3, 64), np.float32)
    values[1] = np.tile([1.0, -1.0], 32)
    values[2, :2] = 1e-9, 3.0
    decoded = codec.decode(kind, codec.encode(kind, values))
    assert np.abs(decoded - values).max() <= 3 / 8
    assert not decoded[0].any()
    with pytest.raises(ValueError, match="does not divide 48"):
        codec.encode(kind, np.zeros((2, 48), np.float32))


@pytest.mark.parametrize("n", [1, 2, 64, 128])
def test_the_hadamard_matrix_is_its_own_inverse(n):
    matrix = codec.hadamard(n)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, matrix.T)
    assert np.abs(matrix @ matrix - np.eye(n)).max() < 1e-6


@pytest.mark.parametrize(("length", "keys", "values"), [(64, 64, 64), (96, 1, 1), (128, 128, 64), (192, 64, 64)])
def test_quantised_heads_are_rotated_in_llama_cpps_blocks(tmp_path, length, keys, values):
    assert (codec.rotation("q8_0", length, "k"), codec.rotation("q8_0", length, "v")) == (keys, values)
    assert codec.rotation("f16", length, "k") == 1
    write_gguf(tmp_path / "model.gguf", length)
    ids = np.random.default_rng(1).integers(0, WIDTH, TOKENS).tolist()
    with library.loaded(tmp_path / "model.gguf") as model:
        shape = library.cache_shape(model)
        exact, stored = (state.parse(prefilled(model, ids, kind, True), shape)[0] for kind in ("f32", "q8_0"))
    assert relative(stored.keys_f32(), exact.keys_f32()) < 0.01
    assert relative(stored.values_f32(), exact.values_f32()) < 0.01
    if keys > 1:
        assert relative(codec.decode("q8_0", stored.keys.swapaxes(0, 1)), exact.keys_f32()) > 0.5


@pytest.mark.parametrize(("kind", "near"), [("f32", 0), ("f16", 0), ("q8_0", 0.01), ("q4_0", 0.15)])
def test_other_keys_are_stored_in_the_layers_own_type(model, shape, ids, kind, near):
    layer = state.parse(prefilled(model, ids, kind, True), shape)[1]
    assert relative(layer.with_keys(layer.keys_f32()).keys_f32(), layer.keys_f32()) <= near
    keys = np.random.default_rng(2).normal(size=(shape.kv_heads, TOKENS, 64)).astype(np.float32)
    other = layer.with_keys(keys)
    assert other.keys.shape == layer.keys.shape
    assert other.values is layer.values
    assert relative(other.keys_f32(), keys) <= max(near, 1e-3)
