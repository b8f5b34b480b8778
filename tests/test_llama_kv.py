"""KV policies on a GGUF file do what they do in transformers, with the same weights: who lives, and what is computed.

Every recipe is covered by being there. Without flash attention and with an f32 cache both engines compute the same
up to the last bits, so the same entries live and the logits agree closely; the settings that a user gets round more,
and a near-tie between two entries may fall the other way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import recipes
from pipeline.engines.llama.kv import Flash
from pipeline.engines.prompt import prefilled
from pipeline.engines.snapshot import Snapshot
from pipeline.engines.stream import Stream, room
from pipeline.engines.torch.attention import TorchLayer
from pipeline.kv import recipe
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision

from .llama_kv_runs import F32, LAYERS, MORE, PROMPT, VOCABULARY, Run, ample, random_ids, run, same, shared, small

pytest_plugins = ["tests.llama_kv_models"]

NAMES = recipes.names("kv")
QUANTISED = [name for name in NAMES if recipe.read(name).types.quantised]
PLAIN = [name for name in NAMES if name not in QUANTISED]
IDS = random_ids(PROMPT + MORE)


@pytest.fixture(scope="module")
def expected(reference):
    """A function that returns what transformers makes of a recipe; each is run once."""
    made: dict[str, Run] = {}

    def give(name: str) -> Run:
        if name not in made:
            made[name] = run(reference, small(name, precision=Precision()), IDS)
        return made[name]

    return give


@pytest.mark.parametrize("name", PLAIN)
def test_a_policy_does_what_it_does_in_transformers(llama, expected, name):
    found, true = run(llama, small(name, precision=F32), IDS), expected(name)
    alike = same(found, true)
    assert shared(found, true) >= 0.99
    assert alike.mean() >= 0.99
    assert np.abs(found.logits - true.logits)[alike].max() < 2e-3
    assert (found.logits.argmax(1) == true.logits.argmax(1))[alike].all()
    if recipe.read(name).budgeted:
        assert np.abs(true.logits - expected("full").logits).max() > 0.05, "nothing was evicted"


@pytest.mark.parametrize("name", PLAIN)
def test_the_settings_that_a_user_gets_round_more(llama, expected, name):
    found, true = run(llama.with_flash(Flash()), small(name), IDS), expected(name)
    alike = same(found, true)
    assert shared(found, true) >= 0.99
    assert np.abs(found.logits - true.logits)[alike].max(initial=0) < 0.05


@pytest.mark.parametrize(("name", "near"), [(name, 0.4 if "q4" in name else 0.04) for name in QUANTISED])
def test_quantised_caches_keep_nearly_the_same(llama, expected, name, near):
    found, true = run(llama, small(name), IDS), expected(name)
    assert shared(found, true) >= 0.99
    assert relative(found.logits, true.logits) < near


@pytest.mark.parametrize("name", [name for name in QUANTISED if not recipe.read(name).online])
def test_what_was_stored_quantised_is_cut_as_transformers_cuts_it(llama, reference, name):
    """Transformers goes on with the values that llama.cpp has stored; what follows is rounded in llama.cpp alone."""
    policy = small(name)
    prompt = prefilled(llama, IDS[:PROMPT], policy)
    exact = [TorchLayer(layer.keys(), _values(layer)) for layer in prompt.layers]
    found = continued(llama, policy, prompt)
    true = continued(reference, replace(policy, precision=Precision()), replace(prompt, layers=exact))
    assert same(found, true).all()
    assert relative(found.logits, true.logits) < (0.2 if "q4" in name else 0.03)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_as_long_as_the_text_is_full_kv_to_the_bit(llama, name):
    policy = ample(name, len(IDS))
    found = run(llama, policy, IDS)
    full = run(llama, Policy(online=policy.online, precision=policy.precision), IDS)
    assert [layer.shape[1] for layer in found.origins[-1]] == [len(IDS)] * LAYERS
    assert found.logits.tobytes() == full.logits.tobytes()


@pytest.mark.parametrize("flash", [Flash(True, False), Flash(False, True), Flash(True, True)])
@pytest.mark.parametrize("name", ["full", "knorm", "pyramidkv", "snapkv"])
def test_a_prompt_is_handed_over_between_the_two_attentions(llama, expected, name, flash):
    found, true = run(llama.with_flash(flash), small(name, precision=F32), IDS), expected(name)
    assert same(found, true).all()
    assert np.abs(found.logits - true.logits).max() < 0.03
    assert (found.logits.argmax(1) == true.logits.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("name", ["fastkv", "gemfilter", "h2o", "pyramidinfer", "snapkv", "tova_pyramid"])
def test_a_prompt_longer_than_a_block_is_the_same(llama, reference, name):
    ids, policy = np.random.default_rng(9).integers(0, VOCABULARY, 710).tolist(), small(name)
    found = run(llama, replace(policy, precision=F32), ids, 700)
    true = run(reference, policy, ids, 700)
    assert same(found, true).all()
    assert np.abs(found.logits - true.logits).max() < 2e-3


def continued(engine, policy: Policy, prompt: Snapshot) -> Run:
    """Return the logits of the tokens behind a prompt that was prefilled elsewhere."""
    cache = engine.cache(room(engine, policy, PROMPT, len(IDS)))
    try:
        stream = Stream(engine, cache, policy)
        stream.take(prompt)
        origins = [stream.origins()]
        return Run(np.concatenate([stream.feed([token]) for token in IDS[PROMPT:]]), origins)
    finally:
        cache.close()


def _values(layer):
    import torch

    return torch.from_numpy(layer.stored.values_f32())


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """Return how far logits are off, as a share of what differs between tokens of the vocabulary."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true - true.mean(1, keepdims=True)))
