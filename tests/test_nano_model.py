"""The embedded base's model and what it is measured by: attention, masks, losses, divergence, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.measure import measure
from pipeline.nano import probes
from pipeline.nano.evaluate import Check
from pipeline.nano.model import CausalLM, causal_attention

from .nano_runs import TINY


@pytest.mark.parametrize("length", [5, 256, 300])
def test_blockwise_attention_is_causal_attention(length):
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(causal_attention(q, k, v), expected, atol=1e-5)


def test_explicit_causal_mask_and_first_token_mass():
    torch.manual_seed(0)
    model = CausalLM(TINY)
    ids, positions = torch.randint(0, 600, (1, 20)), torch.arange(20)[None]
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    plain, watched = model.hidden(ids, positions, watch=(torch.tensor([0]), torch.zeros(1, 1, 1, dtype=torch.long)))
    masked, _ = model.hidden(ids, positions, causal[None, None])
    assert torch.allclose(plain, masked, atol=1e-5)
    assert torch.allclose(watched, torch.zeros(3, 1, 4, 1, 1), atol=1e-6)  # log of 1: the first token sees itself alone


@given(st.integers(1, 60), st.integers(0, 4), st.integers(1, 20))
def test_window_keeps_sinks_and_the_newest_within_budget(length, sinks, recent):
    mask = probes.window(length, sinks, sinks + recent)
    assert torch.equal(mask.sum(1), torch.arange(1, length + 1).clamp(max=sinks + recent))
    assert mask.diagonal().all()
    assert mask[:, :sinks].tril().sum() == torch.ones(length, min(sinks, length)).tril().sum()


def test_kept_after_prefill_touches_only_the_rows_of_question_and_answer():
    mask = probes.kept_after_prefill(50, question=40, span=(10, 15), sinks=4, budget=20)
    causal = torch.ones(50, 50, dtype=torch.bool).tril()
    assert torch.equal(mask[:40], causal[:40])
    assert mask[40].nonzero().flatten().tolist() == [*range(4), *range(10, 15), *range(29, 41)]


def test_losses_under_a_causal_mask_are_the_plain_losses():
    torch.manual_seed(0)
    model = CausalLM(TINY)
    ids = list(range(30))
    assert torch.allclose(probes.losses(model, ids), probes.losses(model, ids, probes.window(30, 0, 30)), atol=1e-5)


def test_divergence_of_a_model_from_itself_is_zero_and_from_another_is_not():
    torch.manual_seed(0)
    one, other = CausalLM(TINY), CausalLM(TINY)
    rows = [list(range(20)), list(range(20, 40))]
    assert probes.divergence(one, one, rows)["value"] == pytest.approx(0, abs=1e-7)
    assert probes.divergence(one, other, rows)["value"] > 1e-3


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(None, None, None), (0.5, None, True), (0.51, None, False), (None, 0.5, True), (0.1, 0.4, False)],
)
def test_a_check_holds_within_its_bounds(low, high, holds):
    assert replace(Check("x", measure(0.5)), low=low, high=high).holds is holds
