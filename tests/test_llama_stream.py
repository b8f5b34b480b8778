"""KV-cache policies in llama.cpp: the same cache, masks and rotations as transformers under the same eviction."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.stream import Stream
from pipeline.kv import policy as kv
from pipeline.kv.policy import Never, Over, Policy, Segments
from pipeline.kv.precision import Precision

pytest_plugins = ["tests.gguf_models"]

F32 = Precision("f32", "f32")
TOKENS = 80
THETA = 10000.0
FULL = Policy(Segments(whole=True), Never(), "original", F32)


def evicting(sinks: int, budget: int, slack: int, positions: kv.Positions, precision: Precision = F32) -> Policy:
    return Policy(Segments(sinks, budget - sinks), Over(budget, slack), positions, precision)


@pytest.fixture(scope="module")
def model(tiny_gguf):
    with library.loaded(tiny_gguf("F32")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def torch_model(tiny_model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="eager")
    return loaded.eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(3).integers(0, 500, TOKENS).tolist()


def decoded(model, policy: Policy, ids: list[int], flash: bool = False, block: int = 1000) -> np.ndarray:
    """Return the logits after every token, fed in blocks."""
    cells = policy.most_entries(len(ids))
    with Context(model, n_ctx=cells, threads=1, precision=policy.precision, flash_attention=flash) as context:
        stream = Stream(context, policy)
        return np.concatenate([stream.feed(ids[i : i + block], every=True) for i in range(0, len(ids), block)])


def masked_forward(torch_model, ids: list[int], sinks: int, budget: int, slack: int) -> np.ndarray:
    """Return the logits of one forward in which each token sees what was alive when it came, and itself."""
    import torch

    mask = torch.full((len(ids), len(ids)), torch.finfo(torch.float32).min)
    alive: list[int] = []
    for token in range(len(ids)):
        alive.append(token)
        mask[token, alive] = 0.0
        if len(alive) > budget + slack:
            alive = alive[:sinks] + alive[len(alive) - (budget - sinks) :]
    with torch.inference_mode():
        return torch_model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0].numpy()


def rotated(keys, delta: int):
    """Return keys [..., tokens, head] moved by ``delta`` positions: RoPE over the two halves of a head."""
    import torch

    half = keys.shape[-1] // 2
    angle = delta * THETA ** (-torch.arange(half) / half)
    cos, sin = angle.cos().repeat(2), angle.sin().repeat(2)
    return keys * cos + torch.cat([-keys[..., half:], keys[..., :half]], dim=-1) * sin


def compacted(torch_model, ids: list[int], sinks: int, budget: int, slack: int) -> np.ndarray:
    """Return the logits of token-by-token decoding whose cut cache is rotated to positions 0, 1, 2 ..."""
    import torch
    from transformers import DynamicCache

    cache, scores = DynamicCache(config=torch_model.config), []
    with torch.inference_mode():
        for token in ids:
            position = torch.tensor([[cache.get_seq_length()]])
            output = torch_model(torch.tensor([[token]]), past_key_values=cache, position_ids=position)
            scores.append(output.logits[0, -1].numpy())
            gone = cache.get_seq_length() - budget
            if gone > slack:
                for layer in cache.layers:
                    moved = rotated(layer.keys[:, :, sinks + gone :], -gone)
                    layer.keys = torch.cat([layer.keys[:, :, :sinks], moved], dim=2)
                    layer.values = torch.cat([layer.values[:, :, :sinks], layer.values[:, :, sinks + gone :]], dim=2)
    return np.stack(scores)


SIZES = [(0, 24, 0), (0, 24, 7), (4, 24, 0), (4, 30, 5), (1, 2, 3)]  # sinks, budget, slack


@pytest.mark.parametrize(("sinks", "budget", "slack"), SIZES)
def test_eviction_is_a_mask(model, torch_model, ids, sinks, budget, slack):
    found = decoded(model, evicting(sinks, budget, slack, "original"), ids)
    expected = masked_forward(torch_model, ids, sinks, budget, slack)
    assert np.abs(found - expected).max() < 2e-4
    assert np.abs(found - decoded(model, FULL, ids)).max() > 0.05, "eviction must show"


@pytest.mark.parametrize(("sinks", "budget", "slack"), [(0, 24, 7), (4, 24, 0), (4, 30, 5)])
def test_compact_positions_are_keys_rotated_again(model, torch_model, ids, sinks, budget, slack):
    found = decoded(model, evicting(sinks, budget, slack, "compact"), ids)
    assert np.abs(found - compacted(torch_model, ids, sinks, budget, slack)).max() < 5e-4
    if sinks:
        original = decoded(model, evicting(sinks, budget, slack, "original"), ids)
        assert np.abs(found - original).max() > 2e-3, "the sinks' distance must show"


@pytest.mark.parametrize(("kind", "flash"), [("f16", False), ("f16", True), ("q8_0", True)])
def test_stored_types_stay_near_f32(model, ids, kind, flash):
    exact = decoded(model, evicting(4, 30, 5, "compact"), ids)
    found = decoded(model, evicting(4, 30, 5, "compact", Precision(kind, kind)), ids, flash)
    assert np.abs(found - exact).max() < 0.05
    assert (found.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("policy", [evicting(0, 24, 5, "original"), evicting(4, 24, 5, "compact"), FULL])
def test_blocks_score_as_single_tokens_do(model, ids, policy):
    whole = decoded(model, policy, ids)
    for block in (1, 7):
        assert np.abs(decoded(model, policy, ids, block=block) - whole).max() < 2e-4


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("name", ["recent_only", "streaming_llm"])
@pytest.mark.parametrize("budget", [TOKENS, TOKENS + 40])
def test_a_budget_as_long_as_the_text_gives_the_bits_of_full_kv(model, ids, name, budget, flash):
    full = decoded(model, kv.read("full").policy(None, 0), ids, flash)
    assert decoded(model, kv.read(name).policy(budget, 8), ids, flash).tobytes() == full.tobytes()


def test_streaming_without_sinks_gives_the_bits_of_recent_only(model, ids):
    recent = kv.read("recent_only").policy(24, 5)
    assert (
        decoded(model, evicting(0, 24, 5, "original", Precision()), ids).tobytes()
        == decoded(model, recent, ids).tobytes()
    )


@pytest.mark.parametrize("name", ["recent_only", "streaming_llm"])
@pytest.mark.parametrize(("kind", "flash"), [("f16", False), ("q8_0", True)])
def test_the_cache_stays_within_budget_and_slack_for_ever(model, name, kind, flash):
    raw = kv.read(name).model_dump() | {"precision": {"k": kind, "v": kind}}
    policy = kv.PolicyRecipe(**raw).policy(48, 16)
    shape = library.cache_shape(model)
    tokens = np.random.default_rng(0).integers(0, 500, 2500).tolist()  # beyond the trained 2048
    with Context(model, n_ctx=65, threads=1, precision=policy.precision, flash_attention=flash) as context:
        stream = Stream(context, policy)
        stream.feed(tokens[:600])
        for token in tokens[600:2000]:
            stream.feed([token])
            assert 48 <= stream.live <= 64
            assert context.kv_bytes(shape.layers, stream.live) == policy.precision.kv_bytes(shape, stream.live)
        scores = stream.feed(tokens[2000:], every=True)
        assert stream.peak == 65
    assert np.isfinite(scores).all()


def test_original_positions_go_on_and_compact_ones_start_anew(model, ids):
    with Context(model, n_ctx=256, threads=1) as context:
        original = Stream(context, evicting(4, 24, 5, "original", Precision()))
        original.feed(ids)
        assert original.positions[:4].tolist() == [0, 1, 2, 3]
        assert original.positions[-1] == TOKENS - 1
        compact = Stream(context, evicting(4, 24, 5, "compact", Precision()))
        compact.feed(ids)
        assert compact.positions.tolist() == list(range(compact.live))


def test_a_quantised_model_streams(tiny_gguf, ids):
    with library.loaded(tiny_gguf("Q4_K_M")) as quantised:
        scores = decoded(quantised, kv.read("streaming_llm").policy(24, 5), ids)
    assert scores.shape == (TOKENS, 512)
    assert np.isfinite(scores).all()
