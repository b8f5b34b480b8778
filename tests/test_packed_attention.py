"""Attention example by example is the block-causal mask's, gradients included; models with other attention keep it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.sft import attention
from pipeline.sft.dataset import NO_LOSS
from pipeline.sft.trainer import answers_nll

POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 0, 0]])  # the second row is padded


@pytest.fixture
def load(tiny_model_dir):
    """A function that loads the tiny model, with changes to its config."""
    config = AutoConfig.from_pretrained(tiny_model_dir)

    def load(**changes):
        config.update(changes)
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_pretrained(tiny_model_dir, config=config, dtype=torch.float32)

    return load


def loss_and_gradients(model, **packed):
    ids = torch.randint(5, 500, POSITIONS.shape, generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[1, 6:] = NO_LOSS
    nll, tokens = answers_nll(model, ids, POSITIONS.clone(), labels, **packed)
    nll.backward()
    assert tokens == 13
    return nll.item(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_lengths_are_those_of_the_examples_and_of_the_padding():
    assert attention.lengths(POSITIONS.clone()) == [4, 5, 6, 3]


def test_loss_and_gradients_are_those_of_the_mask(load):
    masked_nll, masked = loss_and_gradients(load())
    model = load()
    assert attention.replace(model)
    nll, gradients = loss_and_gradients(model, packed=True)
    assert nll == pytest.approx(masked_nll, rel=1e-6)
    for found, expected in zip(gradients, masked, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_examples_do_not_see_one_another_but_would_without_lengths(load):
    model = load()
    attention.replace(model)
    ids = torch.arange(5, 14)[None]
    positions = POSITIONS[:1]
    apart, joined = (
        model(ids, position_ids=positions, use_cache=False, example_lengths=lengths).logits[0]
        for lengths in ([4, 5], [9])
    )
    alone = model(ids[:, 4:], position_ids=positions[:, 4:], use_cache=False, example_lengths=[5]).logits[0]
    torch.testing.assert_close(apart[4:], alone, rtol=1e-4, atol=1e-5)
    assert (joined[4:] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"attn_logit_softcapping": 30.0}, {"_attn_implementation": "eager"}])
def test_a_model_of_other_attention_keeps_its_own(load, changes):
    model = load()
    if "_attn_implementation" in changes:
        model.set_attn_implementation("eager")
    else:
        model.config.update(changes)
    before = model.config._attn_implementation
    assert not attention.replace(model)
    assert model.config._attn_implementation == before
