"""Metrics against values worked out by hand, an independent BERTScore, and the laws they must obey."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import UserError
from pipeline.metrics import bert_f1, divergence, perplexity, softmax, uncertainty

PAIR_OF_LOGITS = arrays(np.float32, (2, 3, 7), elements=st.floats(-40, 40, width=32))
CANDIDATES = ["多喝温水，注意休息。", "睡前少看手机", "37.5℃ ABC", "", "头痛"]
REFERENCES = ["多喝热水，好好休息，发热超过三天要就医。", "晚上不宜喝浓茶。", "血压130", "您好", "头痛"]


def test_divergence_by_hand():
    reference = np.log([[0.5, 0.5], [0.9, 0.1]]).astype(np.float32)
    model = np.log([[0.75, 0.25], [0.2, 0.8]]).astype(np.float32)
    by_hand = [0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.9 * math.log(4.5) + 0.1 * math.log(0.125)]
    assert divergence.kld(reference, model) == pytest.approx(by_hand, rel=1e-5)
    assert divergence.same_top(reference, model).tolist() == [True, False]


@given(PAIR_OF_LOGITS)
def test_divergence_is_never_negative_and_zero_of_equals(logits):
    reference, model = logits
    assert (divergence.kld(reference, model) >= 0).all()
    assert (divergence.kld(reference, reference) == 0).all()
    assert divergence.same_top(reference, reference).all()


@given(PAIR_OF_LOGITS, st.floats(-5, 5))
def test_divergence_agrees_with_float64_and_ignores_a_shift(logits, shift):
    reference, model = logits.astype(np.float64)
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (reference, model))
    exact = (np.exp(p) * (p - q)).sum(-1)
    assert divergence.kld(logits[0], logits[1]) == pytest.approx(exact, abs=2e-5)
    assert divergence.kld(logits[0], logits[1] + np.float32(shift)) == pytest.approx(exact, abs=2e-4)


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    reference, model = rng.normal(size=(2, 50, 11)).astype(np.float32)
    ids = rng.integers(0, 11, 50)
    whole = divergence.kld(reference, model), softmax.token_nll(model, ids)
    monkeypatch.setattr(softmax, "BLOCK_ELEMENTS", 33)
    np.testing.assert_array_equal(whole, [divergence.kld(reference, model), softmax.token_nll(model, ids)])


def test_mean_divergence_weighs_tokens_not_dialogues():
    assert divergence.mean_kld([[0.1], [0.3, 0.3, 0.3]])["value"] == pytest.approx(0.25)
    assert divergence.mean_same_top([[True], [False, True, True]])["value"] == pytest.approx(0.75)


@pytest.mark.parametrize("vocabulary", [2, 100, 151_936])
def test_perplexity_of_a_uniform_model_is_its_vocabulary(vocabulary):
    logits = np.full((5, vocabulary), 3.0, dtype=np.float32)
    nlls = [softmax.token_nll(logits, np.arange(5) % vocabulary), softmax.token_nll(logits[:2], np.array([1, 0]))]
    record = perplexity.perplexity(nlls)
    assert record["value"] == pytest.approx(vocabulary, rel=1e-5)
    assert record["stderr"] == pytest.approx(0, abs=1e-3 * vocabulary)


def test_perplexity_and_bits_by_hand():
    nlls = [[2.0], [1.0, 1.5, 1.5]]  # sums 2 and 4, tokens 1 and 3: r = 1.5, residuals .5 and -.5, Var = 2 * .5 / 16
    record = perplexity.perplexity(nlls)
    assert record["value"] == pytest.approx(math.exp(1.5), rel=1e-5)
    assert record["stderr"] == pytest.approx(math.exp(1.5) * 0.25, rel=1e-5)
    assert record["ci95"] == pytest.approx([math.exp(1.5 - 0.489991), math.exp(1.5 + 0.489991)], rel=1e-5)
    assert perplexity.bits_per_char(nlls, [2, 4])["value"] == pytest.approx(1 / math.log(2), rel=1e-5)


def test_ratio_error_matches_simulation():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 30, size=(4000, 80))
    sums = counts * rng.gamma(5, 0.5, size=counts.shape)  # tokens of a dialogue share their difficulty
    estimates = np.array([uncertainty.ratio(s, c) for s, c in zip(sums, counts, strict=True)])
    assert estimates[:, 1].mean() == pytest.approx(estimates[:, 0].std(), rel=0.1)


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        low, high = uncertainty.mean_measure(rng.beta(2, 5, size=60), seed)["ci95"]
        covered += low <= 2 / 7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_mean_repeats_with_its_seed_only():
    values = np.random.default_rng(3).normal(size=40)
    assert uncertainty.mean_measure(values, 1) == uncertainty.mean_measure(values, 1)
    assert uncertainty.mean_measure(values, 1)["ci95"] != uncertainty.mean_measure(values, 2)["ci95"]


@given(st.integers(2, 300), st.integers(0, 2**32))
def test_derangement_moves_everything(n, seed):
    order = uncertainty.derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert (order != np.arange(n)).all()


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory) -> Path:
    """A random BERT of 3 layers with a character tokenizer, and a baseline."""
    import torch
    from transformers import BertConfig, BertModel

    from pipeline.nano import scorer_train

    directory = tmp_path_factory.mktemp("tiny-bert")
    words = scorer_train.tokenizer(scorer_train.vocabulary(REFERENCES), 64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config).save_pretrained(directory)
    words.save_pretrained(directory)
    (directory / "baseline.csv").write_text("LAYER,P,R,F\n0,0,0,0.1\n1,0,0,0.2\n2,0,0,0.25\n3,0,0,0.4\n")
    return directory


@pytest.fixture(scope="module")
def recipe(tiny_bert) -> bert_f1.ScorerRecipe:
    baseline = str(tiny_bert / "baseline.csv")
    return bert_f1.ScorerRecipe(summary="", model=str(tiny_bert), layer=2, lang="zh", baseline=baseline, license="MIT")


def independent_f1(directory: Path, layer: int, candidate: str, reference: str) -> float:
    """BERTScore from its paper: greedy cosine matches; the end markers may be matched, but are not averaged."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    vectors = []
    for text in (candidate, reference):
        with torch.no_grad():
            states = model(**words(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        vectors.append(states / states.norm(dim=-1, keepdim=True))
    similarity = vectors[0] @ vectors[1].T
    precision = similarity.max(dim=1).values[1:-1].mean()
    recall = similarity.max(dim=0).values[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))


def test_bert_f1_equals_an_independent_implementation(tiny_bert, recipe):
    scores = bert_f1.scores(bert_f1.open_scorer(recipe), CANDIDATES, REFERENCES)
    expected = [
        independent_f1(tiny_bert, 2, *pair) if all(pair) else 0 for pair in zip(CANDIDATES, REFERENCES, strict=True)
    ]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores[3] == 0
    assert scores[4] == pytest.approx(1)


def test_bert_f1_does_not_depend_on_its_batches(recipe, monkeypatch):
    scorer = bert_f1.open_scorer(recipe)
    whole = bert_f1.scores(scorer, CANDIDATES, REFERENCES)
    monkeypatch.setattr(bert_f1, "PAIRS", 1)
    assert bert_f1.scores(scorer, CANDIDATES, REFERENCES) == pytest.approx(whole, abs=1e-5)


def test_long_texts_are_cut_to_the_scorers_length(recipe):
    assert bert_f1.scores(bert_f1.open_scorer(recipe), ["头痛" * 500], ["头痛" * 500]) == pytest.approx([1])


def test_metric_objects_agree_with_the_functions(recipe):
    from pipeline.metrics.modules import BertF1, Divergence, Perplexity

    scorer = bert_f1.open_scorer(recipe)
    baseline = bert_f1.baseline_f1(recipe.baseline, recipe.layer)
    result = BertF1(scorer, baseline, seed=0).compute(predictions=CANDIDATES, references=REFERENCES)
    raw = bert_f1.scores(scorer, CANDIDATES, REFERENCES)
    assert baseline == 0.25
    assert result["per_dialogue"] == pytest.approx(raw, abs=5e-5)
    assert result["bert_f1"]["value"] == pytest.approx(raw.mean(), abs=5e-5)
    assert result["bert_f1_rescaled"]["value"] == pytest.approx((raw.mean() - 0.25) / 0.75, abs=1e-4)
    assert result["bert_f1_shuffled"]["value"] < result["bert_f1"]["value"]

    metric, nlls = Perplexity(), [[2.0], [1.0, 1.5, 1.5]]
    for tokens, characters in zip(nlls, [2, 4], strict=True):
        metric.add(nlls=tokens, characters=characters)
    assert metric.compute()["perplexity"] == perplexity.perplexity(nlls)

    metric = Divergence()
    metric.add(klds=np.array([0.5, 0.1]), same=np.array([True, False]))
    assert metric.compute()["same_top"]["value"] == 0.5


def test_everything_a_scorer_lacks_is_named_at_once(tmp_path):
    recipe = bert_f1.ScorerRecipe(
        summary="", model=str(tmp_path), layer=2, lang="zh", baseline=str(tmp_path / "b.csv"), license="MIT"
    )
    with pytest.raises(UserError) as error:
        bert_f1.open_scorer(recipe)
    assert len(error.value.problems) == 4
    assert "b.csv" in str(error.value)


def test_an_unreachable_hub_names_the_offline_scorer(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    recipe = bert_f1.ScorerRecipe(
        summary="", model="google-bert/bert-base-chinese", revision="8f2", layer=8, lang="zh", license=""
    )
    with pytest.raises(UserError, match=r"evaluate\.scorer=nano-bert"):
        bert_f1.open_scorer(recipe)


def test_the_standard_scorers_baseline_ships_with_bert_score():
    recipe = bert_f1.ScorerRecipe(
        summary="", model="google-bert/bert-base-chinese", revision="8f2", layer=8, lang="zh", license=""
    )
    assert bert_f1.baseline_f1(bert_f1._shipped_baseline(recipe), 8) == pytest.approx(0.54756, abs=1e-5)


settings.register_profile("metrics", deadline=None)
settings.load_profile("metrics")
