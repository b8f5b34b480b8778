"""The mask law: what any policy computes is one forward pass in which every token sees exactly what was alive.

The record of a run says which entries each token met in each layer and KV head, and at which positions. One pass of
the same model over full attention matrices, with RoPE applied afresh to every pair, must give the same logits, and
the keys and queries that the run holds must be the pass's. This holds for whole and online prefill, for unequal
layers, for heads that keep different tokens, for tokens that later layers never see and for positions that move. A
new recipe is covered by being there, unless entries are computed again: those are another pass's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.engines.snapshot import Snapshot
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv import recipe
from pipeline.kv.rope import Rope
from tests.kv_models import MODELS, View, causal_view, look, random_ids
from tests.kv_runs import run, small

PROMPTS, MORE = (60, 120), 40  # PyramidInfer leaves short prompts whole
CASES = [("qwen3", 0), ("gpt_neox", 5)]
NAMES = [name for name in recipes.names("kv") if not recipe.read(name).rewrites]


def prompt_length(policy) -> int:
    """Return a prompt that is long enough for the policy to act on it."""
    narrowing = policy.narrowing
    return next(n for n in PROMPTS if not narrowing or narrowing.sizes(4, n, policy.budget)[-1] < n)


@pytest.mark.parametrize(("model", "slack"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_one_masked_forward(name, model, slack):
    model, policy = MODELS[model](), small(name, slack)
    prompt = prompt_length(policy)
    ids = random_ids(prompt + MORE)
    found = run(model, policy, ids, prompt)
    view = found.view(model, len(ids))
    expected = look(model, ids, view).numpy()[found.tokens()]
    assert len(found.logits) == (len(ids) if policy.online else MORE + 1)
    assert np.abs(found.logits - expected).max() < 1e-4
    if recipe.read(name).budgeted:
        plain = look(model, ids, causal_view(model, len(ids))).numpy()[found.tokens()]
        assert np.abs(found.logits - plain).max() > 1e-2, "the policy must have made a difference"
    entries_and_queries_are_the_views(TorchKvEngine(model).rope, found.stream.snapshot(), view)


def entries_and_queries_are_the_views(rope: Rope, state: Snapshot, view: View) -> None:
    """Turned back from where they are said to stand, keys and queries are those of the tokens they are said to be."""
    for layer, kv in enumerate(state.layers):
        keys = rope.rotate(kv.keys(), -state.positions[layer])
        rows = state.origins[layer].unsqueeze(-1).expand_as(keys)
        assert (keys - view.keys[layer].gather(1, rows)).abs().max() < 1e-3
        if state.queries:
            queries = state.queries[layer]
            plain = rope.rotate(queries.vectors, -queries.positions)
            assert (plain - view.queries[layer][:, queries.origins]).abs().max() < 1e-3


def test_the_masked_forward_without_a_mask_is_the_model():
    for make in MODELS.values():
        ids = random_ids(50)
        with torch.no_grad():
            model = make()
            plain = type(model)(model.config)
            plain.load_state_dict(model.state_dict())
            plain.set_attn_implementation("eager")
            expected = plain.eval()(torch.tensor([ids])).logits[0]
        assert (look(model, ids, causal_view(model, len(ids))) - expected).abs().max() < 1e-4
