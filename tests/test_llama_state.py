"""llama.cpp's KV state: stored types, its bytes and back, hand-over between contexts, eviction per layer and head."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import codec, library, state
from pipeline.engines.llama.context import Context
from pipeline.kv.precision import CacheShape, Precision

pytest_plugins = ["tests.gguf_models"]

KINDS = ["f32", "f16", "q8_0", "q4_0"]
STORED = [*((kind, True) for kind in KINDS), ("f32", False), ("f16", False)]  # type, flash attention
TOKENS = 70
MORE = 20
WIDTH = 64


@pytest.fixture(scope="module")
def model(tiny_gguf):
    with library.loaded(tiny_gguf("F32")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def shape(model) -> CacheShape:
    return library.cache_shape(model)


@pytest.fixture(scope="module")
def torch_model(tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(5).integers(0, 500, TOKENS + MORE).tolist()


def opened(model, kind: str, flash: bool, cells: int = 256) -> Context:
    return Context(model, n_ctx=cells, threads=1, precision=Precision(kind, kind), flash_attention=flash)


def prefilled(model, ids: list[int], kind: str, flash: bool) -> np.ndarray:
    """Return the state after the first tokens."""
    with opened(model, kind, flash) as context:
        context.decode(ids[:TOKENS], range(TOKENS))
        return context.state()


def continued(context: Context, ids: list[int]) -> np.ndarray:
    """Return the logits after each of the tokens that follow, fed one by one."""
    return np.stack([context.decode([ids[i]], [i])[0].copy() for i in range(TOKENS, TOKENS + MORE)])


def random_keep(shape: CacheShape, kept: int, seed: int = 0) -> np.ndarray:
    """Return other entries for every layer and KV head, in order, [layers, KV heads, kept]."""
    random = np.random.default_rng(seed)
    return np.stack(
        [
            [np.sort(random.choice(TOKENS, kept, replace=False)) for _ in range(shape.kv_heads)]
            for _ in range(shape.layers)
        ]
    )


def write_gguf(path, length: int, architecture: str = "llama") -> None:
    """Write a one-layer model of random weights, 2 heads of some length, without a tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(WIDTH)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(length)
    writer.add_value_length(length)
    writer.add_rope_dimension_count(length)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_sections([length // 2, 0, 0, 0])
    writer.add_num_deepstack_layers(0)
    random = np.random.default_rng(0)
    sizes = dict.fromkeys(["token_embd", "output", *(f"blk.0.ffn_{part}" for part in ("gate", "up", "down"))], (64, 64))
    sizes |= dict.fromkeys([f"blk.0.attn_{part}" for part in "qkv"], (2 * length, WIDTH))
    for name, size in {**sizes, "blk.0.attn_output": (WIDTH, 2 * length)}.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, size).astype(np.float32))
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    if architecture == "qwen3vl":
        for part in "qk":
            writer.add_tensor(f"blk.0.attn_{part}_norm.weight", np.ones(length, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("kind", "flash"), STORED)
def test_a_state_is_parsed_without_a_copy_and_built_bit_for_bit(model, shape, ids, kind, flash):
    with opened(model, kind, flash) as context:
        context.decode(ids[:TOKENS], range(TOKENS))
        context.remove(10, 31)
        data = context.state()
    layers = state.parse(data, shape)
    assert len(layers) == shape.layers
    assert all(np.shares_memory(part, data) for layer in layers for part in (layer.keys, layer.values))
    assert {(layer.k_kind, layer.v_kind, layer.entries, layer.transposed) for layer in layers} == {
        (kind, kind, TOKENS - 21, not flash)
    }
    positions = state.positions(data)
    assert positions.tolist() == [*range(10), *range(31, TOKENS)]
    assert state.build(layers, positions, not flash).tobytes() == data.tobytes()


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_values_turn_over_and_back_bit_for_bit(model, shape, ids, kind, flash):
    data = prefilled(model, ids, kind, flash)
    positions = state.positions(data)
    turned = state.build(state.parse(data, shape), positions, flash)
    assert turned.tobytes() != data.tobytes()
    layers = state.parse(turned, shape)
    assert layers[0].transposed == flash
    assert state.build(layers, positions, not flash).tobytes() == data.tobytes()


@pytest.mark.parametrize("newer_flash", [True, False])
@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_entries_are_joined_bit_for_bit_whatever_their_layouts(model, shape, ids, kind, flash, newer_flash):
    data = prefilled(model, ids, kind, flash)
    older, newer = (np.arange(*ends)[None].repeat(shape.kv_heads, 0) for ends in ((0, 13), (13, TOKENS)))
    positions = state.positions(data)
    layers = state.parse(data, shape)
    turned = state.parse(state.build(layers, positions, not newer_flash), shape)
    joined = [one.gather(older).joined(other.gather(newer)) for one, other in zip(layers, turned, strict=True)]
    assert state.build(joined, positions, not flash).tobytes() == data.tobytes()
    nothing = layers[0].gather(older[:, :0])
    assert nothing.joined(layers[0]) is layers[0]
    assert layers[0].joined(nothing) is layers[0]


def test_entries_of_other_types_are_not_joined(model, shape, ids):
    f16, f32 = (state.parse(prefilled(model, ids, kind, True), shape)[0] for kind in ("f16", "f32"))
    with pytest.raises(ValueError, match="entries in f32/f32 cannot stand behind ones in f16/f16"):
        f16.joined(f32)


# Flash attention rounds more: from the same f32 cache its logits are up to 2e-3 from those without it.
@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize(("kind", "near"), [("f32", 5e-3), ("f16", 0.05)])
def test_a_state_is_handed_over_to_a_smaller_context_with_other_attention(model, shape, ids, kind, near, flash):
    with opened(model, kind, flash, 1024) as large, opened(model, kind, not flash) as small:
        large.decode(ids[:TOKENS], range(TOKENS))
        data = large.state()
        small.restore(state.build(state.parse(data, shape), state.positions(data), flash))
        found, expected = continued(small, ids), continued(large, ids)
    assert np.abs(found - expected).max() < near < np.abs(expected).max()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("flash", [True, False])
def test_a_state_handed_over_and_back_goes_on_with_the_same_bits(model, shape, ids, flash):
    data = prefilled(model, ids, "f32", flash)
    with opened(model, "f32", not flash) as other:
        other.restore(state.build(state.parse(data, shape), state.positions(data), flash))
        turned = other.state()
    back = state.build(state.parse(turned, shape), state.positions(turned), not flash)
    with opened(model, "f32", flash) as first, opened(model, "f32", flash) as second:
        first.restore(data)
        second.restore(back)
        assert continued(second, ids).tobytes() == continued(first, ids).tobytes()


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


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


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


@pytest.mark.parametrize(("kind", "near"), [("f32", 0), ("f16", 0), ("q8_0", 0.01), ("q4_0", 0.15)])
def test_other_keys_are_stored_in_the_layers_own_type(model, shape, ids, kind, near):
    layer = state.parse(prefilled(model, ids, kind, True), shape)[1]
    assert relative(layer.with_keys(layer.keys_f32()).keys_f32(), layer.keys_f32()) <= near
    keys = np.random.default_rng(2).normal(size=(shape.kv_heads, TOKENS, 64)).astype(np.float32)
    other = layer.with_keys(keys)
    assert other.keys.shape == layer.keys.shape
    assert other.values is layer.values
    assert relative(other.keys_f32(), keys) <= max(near, 1e-3)


def torch_cache(torch_model, ids: list[int]):
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=torch_model.config)
    with torch.inference_mode():
        torch_model(torch.tensor([ids[:TOKENS]]), past_key_values=cache)
    return cache


def torch_evicted(torch_model, ids: list[int], keep: np.ndarray):
    """Return transformers' cache after each layer and head kept its own entries."""
    import torch

    cache = torch_cache(torch_model, ids)
    for layer, kept in zip(cache.layers, keep, strict=True):
        index = torch.tensor(kept)[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
    return cache


def torch_continued(torch_model, ids: list[int], cache) -> np.ndarray:
    """Return transformers' logits of the tokens that follow."""
    import torch

    scores = []
    with torch.inference_mode():
        for i in range(TOKENS, TOKENS + MORE):
            output = torch_model(torch.tensor([[ids[i]]]), past_key_values=cache, position_ids=torch.tensor([[i]]))
            scores.append(output.logits[0, -1].numpy())
    return np.stack(scores)


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


def test_an_empty_cache_has_a_state(model, shape):
    with opened(model, "f16", True) as context:
        data = context.state()
        layers = state.parse(data, shape)
        assert [layer.entries for layer in layers] == [0] * shape.layers
        assert layers[0].keys_f32().shape == (shape.kv_heads, 0, 64)
        assert state.build(layers, np.empty(0, np.int32), False).tobytes() == data.tobytes()


def test_positions_of_several_parts_may_have_gaps(tmp_path):
    write_gguf(tmp_path / "model.gguf", 64, "qwen3vl")
    places = np.array([0, 3, 4, 9, 30], np.int32)
    with library.loaded(tmp_path / "model.gguf") as model, opened(model, "f16", True) as first:
        shape = library.cache_shape(model)
        first.decode([5, 6, 7, 8, 9], places)
        data = first.state()
        with pytest.raises(RuntimeError, match="a state"):
            state.parse(data, shape)
        layers = state.parse(data, shape, n_pos=4)
        assert state.positions(data, n_pos=4).tolist() == places.tolist()
        with opened(model, "f16", True) as second:
            second.restore(state.build(layers, places, False, n_pos=4))
            found, expected = second.state(), first.state()
            fields = expected[16 : 16 + 5 * 24].view(np.int32).reshape(5, 6)
            fields[:, 4] = state.NO_TOKEN  # the only thing that is not kept
            assert found.tobytes() == expected.tobytes()
            assert second.decode([10], [40]).tobytes() == first.decode([10], [40]).tobytes()


def test_bytes_that_are_no_state_of_the_model_are_refused(model, shape, ids):
    data = prefilled(model, ids, "f16", True)
    foreign = data.copy()
    foreign[0] ^= 1
    with pytest.raises(RuntimeError, match=r"starts with 0x[0-9a-f]+, expected 0xaf143cd8"):
        state.parse(foreign, shape)
    with pytest.raises(RuntimeError, match="ends within its parts"):
        state.parse(data[:-1], shape)
    with pytest.raises(RuntimeError, match="has 8 after its last layer"):
        state.parse(np.append(data, np.zeros(8, np.uint8)), shape)
    with pytest.raises(RuntimeError, match="2 layers, expected 3"):
        state.parse(data, CacheShape(3, 2, 64, 64))
    with pytest.raises(RuntimeError, match="256 bytes in a row, expected 512"):
        state.parse(data, CacheShape(2, 4, 64, 64))
    with pytest.raises(RuntimeError, match="values in an entry"):
        state.parse(prefilled(model, ids, "f16", False), CacheShape(2, 2, 64, 32))


def test_what_cannot_be_a_state_is_refused(model, shape, ids):
    first, second = state.parse(prefilled(model, ids, "q8_0", True), shape)
    shorter = second.gather(np.zeros((2, 5), np.int64))
    with pytest.raises(ValueError, match=r"\[5, 70\] entries for 70 positions"):
        state.build([first, shorter], np.arange(TOKENS), False)
    with pytest.raises(ValueError, match=r"\[70\] entries for 69 positions"):
        state.build([first, second], np.arange(TOKENS - 1), False)
    with pytest.raises(ValueError, match=r"q8_0.* cannot be transposed"):
        state.build([first, second], np.arange(TOKENS), True)
