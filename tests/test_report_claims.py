"""Every number in the verdict is a value of the stages' JSON, or one step away: none is left over."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline import io
from pipeline.config import Params
from pipeline.metrics import uncertainty
from pipeline.reporting import page, verdict
from pipeline.reporting.load import Results, load
from tests.report_pages import workspace

WORDS = ("BERT-F1", "95\u00a0%")  # digits that are names, not claims


@pytest.fixture
def results(params, tmp_path, monkeypatch) -> Params:
    """A working directory that holds the JSON of a whole run; returns its params."""
    return workspace(params, tmp_path, monkeypatch)


def check(text: str, *values: float) -> None:
    """Assert that the numbers in ``text`` are these values, as far as they are written out."""
    for word in WORDS:
        text = text.replace(word, "")
    shown = re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?", text.replace("−", "-"))
    assert len(shown) == len(values), (shown, values)
    for number, value in zip(shown, values, strict=True):
        digits = len(number.partition(".")[2])
        assert float(number.replace(",", "")) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)


def metric(cell: str, name: str) -> float:
    """Read a metric's value from a model's own JSON."""
    return io.read_json(f"eval/quality/{cell}.json")["metrics"][name]["value"]


def size(cell: str) -> float:
    """Read a model's bytes from its own JSON."""
    return io.read_json(f"eval/quality/{cell}.json")["size_bytes"]["value"]


def gains() -> np.ndarray:
    """Read what every test dialogue gained."""
    merged, base = (io.read_json(f"eval/quality/{cell}.json")["per_dialogue"] for cell in ("merged", "base"))
    assert merged["ids"] == base["ids"]
    return np.array(merged["bert_f1"]) - np.array(base["bert_f1"])


def row(found: Results, name: str) -> dict:
    """Read a policy's row at the greatest depth from the benchmark's JSON."""
    rows = io.read_json(f"eval/bench/{found.params.bench.encodings[0]}.json")["rows"]
    depth = max(row["depth"] for row in rows)
    return next(row for row in rows if row["depth"] == depth and row["policy"] == name.split()[0])


def recall(row: dict) -> float:
    """Return the mean over the kinds of question, asked after the cut where there is one."""
    return float(np.mean([sights.get("unseen", sights["seen"])["value"] for sights in row["recall"].values()]))


def test_the_answer(results):
    found = load(results)
    word, sentence = page.answer(found, verdict.gain(found))
    low, high = uncertainty.mean_measure(gains(), results.runtime.seed)["ci95"]
    assert word == "Yes."
    assert low > 0
    perplexities = (metric(cell, "perplexity") for cell in ("base", "merged"))
    check(sentence, gains().mean(), len(gains()), low, high, *perplexities)


def test_the_numbers_under_the_answer(results):
    told = {name: (value, note) for name, value, note in page.key_figures(load(results))}
    for name, key, scale in (
        ("BERT-F1 ↑", "bert_f1", 1),
        ("Perplexity ↓", "perplexity", 1),
        ("Bits a character ↓", "bits_per_char", 1),
        ("Answers that end, % ↑", "ended", 100),
    ):
        check(told.pop(name)[0], *(metric(cell, key) * scale for cell in ("base", "merged")))
    assert not told
    above = (metric(cell, "bert_f1") - metric(cell, "bert_f1_shuffled") for cell in ("base", "merged"))
    check(page.key_figures(load(results))[0][2], *above)


def test_the_files(results):
    choices = {choice.situation: choice for choice in verdict.choices(load(results))}
    for situation in ("Best quality", "4-bit on a small machine", "GPU server"):
        name = choices[situation].name
        scores = (metric(cell, "bert_f1") for cell in (name, "merged"))
        shares = 100 * size(name) / size("merged")
        same = 100 * metric(name, "same_top")
        check(choices[situation].reason, size(name) / 1e6, shares, *scores, metric(name, "kld"), same)


def test_the_policy(results):
    found = load(results)
    choice = verdict.long_conversation(found)
    own, full = row(found, choice.name), row(found, "full")
    saving = 100 * (1 - own["kv_bytes_final"] / full["kv_bytes_final"])
    loss = 100 * (own["quality"]["perplexity"]["value"] / full["quality"]["perplexity"]["value"] - 1)
    recalls = (100 * recall(one) for one in (own, full))
    check(choice.reason, saving, full["depth"], loss, *recalls, own["timing"]["ratio_to_full"]["value"])
    assert choice.beside == f"on {results.bench.encodings[0]}"


def test_the_rules_state_their_own_bounds(results):
    choices = {choice.situation: choice.rule for choice in verdict.choices(load(results))}
    check(choices["Best quality"], verdict.LOSSLESS_KLD)
    check(choices["4-bit on a small machine"], verdict.SMALL_BITS)
    check(choices["GPU server"])
    check(choices["Long conversations"], 100 * (verdict.LONG_PPL - 1), 100 * verdict.LONG_RECALL)
