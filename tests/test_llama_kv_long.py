"""Texts without end on a GGUF file: the memory of streaming policies does not grow, and no number breaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import recipes
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.engines.opening import opened
from pipeline.engines.stream import room
from pipeline.kv import recipe
from pipeline.kv.policy import Policy

from .llama_kv_runs import VOCABULARY, words

pytest_plugins = ["tests.llama_kv_models"]

BUDGET, SLACK = 48, 15
PAGE_BYTES = 4096
ONLINE = [name for name in recipes.names("kv") if recipe.read(name).online]
SKIPPING = [name for name in ONLINE if recipe.read(name).decode.skip]
STREAMING = [name for name in ONLINE if name not in SKIPPING]


def resident_bytes() -> int:
    """Return the memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def loaded(path: Path, name: str) -> tuple[LlamaKvEngine, Policy]:
    engine = LlamaKvEngine(path, threads=1)
    return engine, recipe.read(name).policy(BUDGET, SLACK, engine.shape.layers)


@pytest.mark.parametrize("name", STREAMING)
def test_ten_thousand_tokens_take_the_memory_of_a_few(narrow_gguf, name):
    count, ids = 10_000, np.random.default_rng(0).integers(0, VOCABULARY, 10_000).tolist()
    engine, policy = loaded(narrow_gguf(1), name)
    with engine:
        cache = engine.cache(room(engine, policy, 0, count))
        stream = opened(engine, cache, policy, words())
        resident, hosted, most = [], [], 0
        for at, token in enumerate(ids):
            assert np.isfinite(stream.feed([token])).all()
            most = max(most, cache.kv_bytes()) if at % 16 == 0 else most
            if at in (count // 2, count - 1):
                resident.append(resident_bytes())
                hosted.append(stream.host_bytes())
        assert stream.seen == count
        assert max(stream.peaks) <= BUDGET + policy.slack + 1
        assert most <= policy.precision.kv_bytes(engine.shape, BUDGET + policy.slack + 1)
        cache.close()
    assert resident[1] - resident[0] - (hosted[1] - hosted[0]) < 5e6


@pytest.mark.parametrize("name", SKIPPING)
def test_only_layers_that_keep_everything_grow(narrow_gguf, name):
    count, ids = 2_000, np.random.default_rng(0).integers(0, VOCABULARY, 2_000).tolist()
    engine, policy = loaded(narrow_gguf(3), name)
    policy = replace(policy, slack=max(policy.slack, 3))  # each cut copies the layers that grow as well
    with engine:
        cache = engine.cache(room(engine, policy, 0, count))
        stream = opened(engine, cache, policy, words())
        assert all(np.isfinite(stream.feed([token])).all() for token in ids)
        assert stream.lives[:2] == [count, count]
        assert stream.peaks[2] <= max(policy.decode.limits(BUDGET, 3)[2:]) + policy.slack + 1
        cache.close()
