"""A model as a chain of parts: the logits of the whole model, skipped positions, and caches of unequal size."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.llama import library, parts, state
from pipeline.engines.llama.chain import Chain, Parts
from pipeline.engines.llama.context import Context, ContextFull
from pipeline.errors import UserError
from pipeline.kv.precision import Precision

from .quantizing import gguf_files, random_model

F32 = Precision("f32", "f32")
LAYERS = 4
TOKENS = 70
MORE = 12
BOUNDS = [[], [2], [1, 2, 3]]


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model with four layers."""
    directory = tmp_path_factory.mktemp("four-layers")
    return random_model(directory, tiny_model_dir, num_hidden_layers=LAYERS, layer_types=["full_attention"] * LAYERS)


@pytest.fixture(scope="module")
def made(model_dir, params, tmp_path_factory):
    """A function that returns the path of the four-layer model in a GGUF file type."""
    return gguf_files(model_dir, params, tmp_path_factory.mktemp("four-layers-gguf"))


@pytest.fixture(scope="module")
def torch_model(model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(7).integers(0, 500, TOKENS + MORE).tolist()


def decoded(decoder: Context | Chain, ids: list[int], block: int) -> np.ndarray:
    """Return the logits after every token: the first 70 in blocks, the others one by one."""
    scores = []
    edges = [*range(0, TOKENS, block), *range(TOKENS, len(ids) + 1)]
    for start, stop in itertools.pairwise(edges):
        tokens, positions = ids[start:stop], range(start, stop)
        scores.append(decoder.decode(tokens, positions, wanted=[True] * len(tokens)).copy())
    return np.concatenate(scores)


def opened(loaded: Parts, cells: int = 256, **settings) -> Chain:
    settings = {"threads": 1, "precision": F32} | settings
    return Chain(loaded, [cells] * len(loaded.models), **settings)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("gapped", [False, True])
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_a_chain_gives_the_bits_of_the_whole_model(made, ids, file_type, bounds, gapped, tmp_path):
    path = made(file_type)
    with library.loaded(path) as model, Context(model, n_ctx=256, threads=1, precision=F32) as context:
        expected = decoded(context, ids, 32)
    with Parts.cut(parts.Source(path), bounds, tmp_path, gapped) as loaded, opened(loaded) as chain:
        assert np.abs(decoded(chain, ids, 32) - expected).max() == 0.0
        assert chain.layers == tuple(parts.layer_ranges(LAYERS, bounds))
        assert len(chain.contexts) == len(bounds) + 1


@pytest.mark.parametrize("flash", [False, True])
def test_long_inputs_pass_in_blocks(made, ids, flash, tmp_path):
    wanted = np.arange(len(ids)) % 3 == 0
    settings = {"threads": 1, "n_batch": 32, "precision": F32, "flash_attention": flash}
    with library.loaded(made("F32")) as model, Context(model, n_ctx=256, **settings) as context:
        edges = itertools.pairwise([*range(0, len(ids), 32), len(ids)])
        blocks = [range(start, stop) for start, stop in edges]
        expected = [context.decode([ids[i] for i in b], b, wanted=wanted[b.start : b.stop]).copy() for b in blocks]
        last = context.decode([5], [len(ids)]).copy()
    with (
        Parts.cut(parts.Source(made("F32")), [1, 3], tmp_path) as loaded,
        Chain(loaded, [256] * 3, **settings) as chain,
    ):
        found = chain.decode(ids, range(len(ids)), wanted=wanted)
        assert np.array_equal(found, np.concatenate(expected))
        assert np.array_equal(chain.decode([5], [len(ids)]), last)


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_ids_are_looked_up_as_llama_cpp_does(made, ids, file_type):
    path = made(file_type)
    embedding = parts.Source(path).embedding()
    with library.loaded(path) as model:
        with Context(model, n_ctx=256, threads=1, precision=F32) as context:
            expected = context.decode(ids, range(len(ids)), wanted=[True] * len(ids)).copy()
        with Context(model, n_ctx=256, threads=1, precision=F32) as context:
            states = embedding(ids)
            assert states.dtype == np.float32
            found = context.decode(states, range(len(ids)), wanted=[True] * len(ids))
            assert found.tobytes() == expected.tobytes()
            with pytest.raises(ValueError, match="width 255 for a model of width 256"):
                context.decode(states[:, :255], range(len(ids)))
    with pytest.raises(IndexError, match="512 of a vocabulary of 512"):
        embedding([0, 512])


def test_skipped_positions_are_those_of_transformers(made, torch_model, ids, tmp_path):
    """The bottom sees all tokens, the top some of them with the positions they have."""
    import torch

    kept = np.sort(np.random.default_rng(1).choice(TOKENS, 25, replace=False))
    positions = torch.tensor(kept)[None]
    with torch.inference_mode():
        inner = torch_model.model
        states = torch_model(torch.tensor([ids[:TOKENS]]), output_hidden_states=True).hidden_states[2][:, kept]
        rotation = inner.rotary_emb(states, positions)
        mask = torch.full((25, 25), torch.finfo(torch.float32).min).triu(1)[None, None]
        for layer in inner.layers[2:]:
            states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotation)
        expected = torch_model.lm_head(inner.norm(states))[0].numpy()
    with (
        Parts.cut(parts.Source(made("F32")), [2], tmp_path, gapped=True) as loaded,
        opened(loaded, n_batch=32) as chain,
    ):
        middle = chain.prefill_part(0, chain.embed(ids[:TOKENS]), range(TOKENS))
        found = chain.prefill_last(middle[kept], kept, wanted=[True] * 25)
        assert np.abs(found - expected).max() < 2e-3
        chain.contexts[1].clear()
        assert np.abs(chain.prefill_last(middle[kept], range(25), wanted=[True] * 25) - expected).max() > 0.01
        with pytest.raises(ValueError, match="part 1 is the last"):
            chain.prefill_part(1, middle, range(TOKENS))


@pytest.mark.parametrize("bounds", [[2], [1, 2, 3]])
def test_parts_continue_from_caches_of_unequal_length(made, torch_model, ids, bounds, tmp_path):
    import torch
    from transformers import DynamicCache

    ranges = parts.layer_ranges(LAYERS, bounds)
    sizes = [60, 41, 22, 9][: len(ranges)]
    random = np.random.default_rng(2)
    keep = [np.stack([np.sort(random.choice(TOKENS, size, replace=False)) for _ in range(2)]) for size in sizes]
    cache = DynamicCache(config=torch_model.config)
    expected = []
    with torch.inference_mode():
        torch_model(torch.tensor([ids[:TOKENS]]), past_key_values=cache)
        for part, kept in zip(ranges, keep, strict=True):
            index = torch.tensor(kept)[None, :, :, None].expand(-1, -1, -1, 64)
            for layer in (cache.layers[i] for i in part):
                layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
        for position in range(TOKENS, len(ids)):
            token, place = torch.tensor([[ids[position]]]), torch.tensor([[position]])
            expected.append(torch_model(token, past_key_values=cache, position_ids=place).logits[0, -1].numpy())
    with Parts.cut(parts.Source(made("F32")), bounds, tmp_path) as loaded:
        with opened(loaded) as chain:
            chain.decode(ids[:TOKENS], range(TOKENS))
            states = [context.state() for context in chain.contexts]
        cells = [1024, 256, 512, 256][: len(ranges)]
        with Chain(loaded, cells, threads=1, precision=F32) as chain:
            assert chain.cells == tuple(cells)
            for model, context, data, kept in zip(loaded.models, chain.contexts, states, keep, strict=True):
                layers = [layer.gather(kept) for layer in state.parse(data, library.cache_shape(model))]
                context.restore(state.build(layers, np.arange(TOKENS - kept.shape[1], TOKENS), transposed=True))
            positions = range(TOKENS, len(ids))
            found = np.concatenate([chain.decode([ids[i]], [i]).copy() for i in positions])
            entries = [size + MORE for size in sizes]
            bytes_each = 2 * 2 * 64 * 4
            assert chain.kv_bytes(entries) == sum(
                n * len(part) * bytes_each for n, part in zip(entries, ranges, strict=True)
            )
    assert np.abs(found - np.stack(expected)).max() < 2e-3


def test_listening_counts_the_layers_of_the_whole_model(made, torch_model, ids, tmp_path):
    import torch

    with torch.inference_mode():
        output = torch_model(torch.tensor([ids]), output_hidden_states=True)
    taken = {}
    with Parts.cut(parts.Source(made("F32")), [1, 3], tmp_path) as loaded, opened(loaded, observed=True) as chain:
        takers = {"Qcur": lambda layer, array: None, "l_out": lambda layer, array: taken.update({layer: array.copy()})}
        with chain.listen(takers), pytest.raises(RuntimeError, match="one purpose"), chain.listen(takers):
            pass
        with chain.listen(takers):
            chain.decode(ids, range(len(ids)))
        assert sorted(taken) == list(range(LAYERS))
        for layer in range(LAYERS - 1):
            assert np.abs(taken[layer] - output.hidden_states[layer + 1][0].numpy()).max() < 2e-3
        taken.clear()
        chain.decode([1], [len(ids)])
        assert not taken
        with opened(loaded) as blind, pytest.raises(RuntimeError, match="observed=True"), blind.listen(takers):
            pass


def test_entries_are_dropped_in_every_part(made, ids, tmp_path):
    with library.loaded(made("F32")) as model, Context(model, n_ctx=256, threads=1, precision=F32) as context:
        expected = edited(context, ids)
    with Parts.cut(parts.Source(made("F32")), [1, 2], tmp_path) as loaded, opened(loaded) as chain:
        assert np.array_equal(edited(chain, ids), expected)


def edited(decoder: Context | Chain, ids: list[int]) -> np.ndarray:
    """Return the logits of a token after a cut in the middle."""
    decoder.decode(ids[:TOKENS], range(TOKENS))
    decoder.remove(4, 30)
    return decoder.decode([7], [TOKENS]).copy()


def test_a_part_without_room_says_so(made, ids, tmp_path):
    with Parts.cut(parts.Source(made("F32")), [2], tmp_path) as loaded:
        with (
            Chain(loaded, [512, 256], threads=1, precision=F32) as chain,
            pytest.raises(ContextFull, match="cache of 256 cells"),
        ):
            chain.decode([1] * 300, range(300))
        with opened(loaded) as chain, pytest.raises(ValueError, match="batch of 257 tokens: expected at most 256"):
            chain.contexts[0].decode([1] * 257, range(257))
        with pytest.raises(ValueError, match="3 numbers of cells for 2 parts"):
            Chain(loaded, [256] * 3, threads=1)


def test_only_the_last_part_has_the_vocabulary(made, tmp_path):
    path = made("Q8_0")
    first, middle, last = (file.stat().st_size for file in parts.Source(path).split([1, 3], tmp_path))
    head = 512 * 256 // 32 * 34
    assert first < (path.stat().st_size - head) / 3
    assert 1.8 * first < middle < 2.2 * first
    assert last - first == pytest.approx(head - parts.VOCABULARY * 256 * 4, abs=1024)


def test_what_cannot_be_cut_is_named(made, tmp_path):
    from gguf import GGUFWriter

    with pytest.raises(UserError, match="no such file"):
        parts.Source(tmp_path / "none.gguf")
    for bounds in ([0], [4], [2, 2], [3, 1], [-1, 2]):
        with pytest.raises(ValueError, match="rising numbers from 1 to 3"):
            parts.Source(made("F32")).split(bounds, tmp_path)
    for name, gapped, problem in (("gemma3", False, "gemma3 cannot be cut"), ("qwen2", True, "qwen2 cannot skip")):
        writer = GGUFWriter(tmp_path / f"{name}.gguf", name)
        writer.add_block_count(2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UserError, match=problem):
            parts.Source(tmp_path / f"{name}.gguf").split([1], tmp_path, gapped)
