"""Pretraining of the embedded base: rows and their links, one small run that resumes, export."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from pipeline.nano import batches, export

from .nano_runs import run_of

pytest_plugins = ["tests.nano_models"]


@pytest.mark.parametrize("kind", ["repeat", "pairs", "records", "needles"])
def test_links_end_at_what_they_tell(nano_recipe, kind):
    row = run_of(nano_recipe).writer.row(Random(4), 400, {kind: 1.0})
    links = batches.links(row)
    told = [(at, to) for of in ("copy", "recall") for at, to in enumerate(links[of]) if to >= 0]
    assert told
    assert all(to <= at and row[to].id == row[at + 1].id for at, to in told)
    for role in ("name", "field"):
        assert all(to < 0 or row[to].role == role for to in links[role])
    assert all(row[to].fact == row[links["field"][at]].fact for at, to in enumerate(links["recall"]) if to >= 0)
    assert kind == "repeat" or sum(to >= 0 for to in links["name"]) > 4


def test_rows_repeat_and_positions_rise_within_the_gap_length(nano_recipe):
    first, second = (
        run_of(nano_recipe).writer.batch(5, nano_recipe["pretrain"]["phases"][0] | {"gaps": 1.0}) for _ in range(2)
    )
    assert torch.equal(first.ids, second.ids)
    assert first.ids.shape == first.targets.shape == first.weights.shape == (2, 64)
    assert torch.equal(first.ids[:, 1:], first.targets[:, :-1])
    assert (first.positions.diff() >= 1).all()
    assert first.positions.max() < 128


@pytest.mark.parametrize("start", ["endoftext", "chat", "bare"])
def test_rows_begin_with_the_token_the_recipe_asks_for(nano_recipe, start):
    writer = run_of(nano_recipe, first_token={start: 1.0}).writer
    begin = {"endoftext": writer.end_of_text, "chat": writer.tokenizer.token_to_id("<|im_start|>")}
    for kind in ("pairs", "records", "needles", "natural"):
        token = writer.row(Random(2), 64, {kind: 1.0})[0].id
        assert token == begin.get(start, token)
        assert (token in begin.values()) == (start != "bare")


def test_resumed_run_equals_one_that_did_not_stop(nano_recipe):
    def steps(run, count):
        for _ in range(count):
            run.step(run.model, run.writer.batch(run.progress.step, run.phase()))
        return run

    through = steps(run_of(nano_recipe), 4)
    steps(run_of(nano_recipe), 2).save("half")
    resumed = run_of(nano_recipe)
    resumed.resume("half")
    steps(resumed, 2)
    assert resumed.progress.tokens == through.progress.tokens == 512
    assert resumed.rate() == nano_recipe["pretrain"]["floor"]
    for one, other in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_export_is_what_transformers_reads(nano_recipe):
    from transformers import AutoModelForCausalLM

    run_of(nano_recipe).save("last")
    export.main(nano_recipe)
    ours, theirs = export.load(Path(nano_recipe["base"])), AutoModelForCausalLM.from_pretrained(nano_recipe["base"])
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits = ours.logits(ours.hidden(ids, torch.arange(40)[None])[0])
        assert torch.allclose(logits, theirs.float()(ids).logits, atol=1e-4)
