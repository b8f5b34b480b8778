"""llama.cpp's KV state: its bytes and back, both layouts of values, hand-over between contexts, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import library, state
from pipeline.kv.precision import CacheShape

from .llama_states import STORED, TOKENS, continued, opened, prefilled
from .one_layer import write_gguf

pytest_plugins = ["tests.gguf_models", "tests.llama_state_models"]


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
