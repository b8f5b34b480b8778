"""The embedded scorer: how it is trained, what its texts are made of, and that the shipped one scores."""

from __future__ import annotations

import math
from itertools import repeat
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import io, schema
from pipeline.metrics import bert_f1
from pipeline.nano import scorer, scorer_evaluate, scorer_text

ROOT = Path(__file__).parents[1]
ANSWER = "多喝温水，注意休息。建议清淡饮食，避免辛辣；如果发热超过三天，请及时就诊。"
TEXT = st.text(alphabet="多喝温水注意休息，。；建议清淡饮食ab1", min_size=1, max_size=60)


@pytest.fixture(scope="module")
def words():
    from pipeline.nano import scorer_train

    return scorer_train.tokenizer(scorer_train.vocabulary([ANSWER, "β受体 37.5℃"] * 2), 64)


@pytest.mark.parametrize("text", [ANSWER, "37.5℃ ABC-12", "您好！①服药；②复查", "鼱龘瘘疖痱"[2:], "β受体"])
def test_the_vocabulary_knows_common_text(words, text):
    pieces = words.tokenize(text)
    assert words.unk_token not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == text.lower().replace(" ", "")


def test_masking_spares_what_is_not_content(words):
    import torch

    from pipeline.nano import scorer_train

    torch.manual_seed(0)
    ids = torch.randint(len(scorer_train.SPECIAL), len(words), (50, 40))
    content = torch.rand(ids.shape) < 0.5
    shown, chosen = scorer_train.masked(ids, content, words, 0.3)
    assert not (chosen & ~content).any()
    assert (shown == ids)[~chosen].all()
    assert chosen[content].float().mean() == pytest.approx(0.3, abs=0.05)
    assert (shown == words.mask_token_id)[chosen].float().mean() == pytest.approx(0.8, abs=0.05)


def test_the_trained_similarity_is_bert_score(words):
    import torch
    from bert_score.utils import greedy_cos_idf

    from pipeline.nano import scorer_train

    torch.manual_seed(1)
    encoded = [
        words(side, padding=True, return_tensors="pt") for side in ([ANSWER, "多喝水"], ["注意休息。", ANSWER[:9]])
    ]
    states = [torch.randn(*side["input_ids"].shape, 16) for side in encoded]
    masks = [side["attention_mask"] for side in encoded]
    ends = torch.tensor([words.cls_token_id, words.sep_token_id, words.pad_token_id])
    content = [~torch.isin(side["input_ids"], ends) for side in encoded]
    ours = scorer_train.match(*states, *masks, *content)
    theirs = greedy_cos_idf(
        states[1].clone(), masks[1], content[1].float(), states[0].clone(), masks[0], content[0].float()
    )[2]
    assert ours.diagonal().tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


def test_training_lowers_both_losses(words):
    import torch

    from pipeline.nano import scorer_train

    torch.manual_seed(2)
    recipe = schema.read(scorer.RECIPE, scorer.Recipe)
    small = recipe.train.model_copy(update={"steps": 75, "pairs": 6, "warmup": 5, "tokens": 32, "contrast_layer": 1})
    pairs = [
        ("头痛", "喝水"),
        ("咳嗽", "少盐"),
        ("睡不着", "泡脚"),
        ("胃胀", "散步"),
        ("眼干", "眨动"),
        ("膝盖", "热敷"),
    ]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = scorer_train.new_model(shape, words, [text for pair in pairs for text in pair])
    curve = list(scorer_train.train(model, words, repeat([(left * 6, right * 6) for left, right in pairs]), small))
    assert [point["step"] for point in curve] == [25, 50, 75]
    assert curve[-1]["masked_loss"] < 0.8 * curve[0]["masked_loss"]
    assert curve[-1]["contrast_loss"] < 0.8 * curve[0]["contrast_loss"]
    assert curve[-1]["ranked_first"] > curve[0]["ranked_first"]


def test_token_vectors_start_from_company(words):
    from pipeline.nano import scorer_train

    texts = ["头痛头晕", "头疼头晕", "喝水喝茶", "喝汤喝茶"] * 3
    vectors = scorer_train.cooccurrence_embedding(texts, words, 8).numpy()
    ache, pain, water = (vectors[words.convert_tokens_to_ids(word)] for word in "痛疼水")
    assert ache @ pain / np.linalg.norm(ache) / np.linalg.norm(pain) > 0.9
    assert ache @ water / np.linalg.norm(ache) / np.linalg.norm(water) < 0.5


@given(TEXT, st.floats(0, 1), st.integers(0, 99))
def test_deleting_words_keeps_order_and_the_rest(text, share, seed):
    shorter = scorer_text.delete_words(text, share, Random(seed))
    pairs = math.ceil(len(text) / 2)
    dropped = min(round(share * pairs), pairs - 1)
    assert 2 * (pairs - dropped) - 1 <= len(shorter) <= 2 * (pairs - dropped)
    rest = iter(text)
    assert all(character in rest for character in shorter)


@given(TEXT, st.integers(0, 99))
def test_views_halves_and_rewritings_are_never_empty(text, seed):
    rng = Random(seed)
    assert all(scorer_text.related("", text, rng))
    assert scorer_text.rewritten(text, rng)
    assert "".join(scorer_text.clauses(text)) in text or scorer_text.clauses(text)


def test_a_rewriting_swaps_synonyms_and_leaves_out_few_clauses():
    rewritten = [scorer_text.rewritten(ANSWER, Random(seed)) for seed in range(200)]
    assert any("推荐" in text and "歇息" in text for text in rewritten)
    assert not any(word in text for text in rewritten for word in ("建议", "休息", "避免"))
    clauses = [len(scorer_text.clauses(text)) for text in rewritten]
    assert np.mean(clauses) == pytest.approx(0.8 * len(scorer_text.clauses(ANSWER)), rel=0.1)


@pytest.mark.parametrize(
    ("question", "condition"),
    [("高血压能吃党参吗", "高血压"), ("糖尿病合并痛风怎么办", None), ("睡前吃什么好", None)],
)
def test_a_condition_is_the_only_one_named(question, condition):
    assert scorer_text.condition(question) == condition


def test_a_question_is_in_one_split_only():
    pairs = [(f"问题{i // 2}", f"回答{i}") for i in range(600)]
    parts = [{question for question, _ in part} for part in scorer_text.split(pairs, 20)]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == 300


def test_batches_are_full_and_pass_over_the_pool():
    pool = [("", f"第{i}条，多喝水。") for i in range(20)]
    batches = scorer_text.batches(pool, 4, Random(0))
    first_pass = [pair for _ in range(5) for pair in next(batches)]
    assert len({left[:2] for left, _ in first_pass}) > 4
    assert all(len(next(batches)) == 4 for _ in range(20))


def test_auc_by_hand():
    assert scorer_evaluate.auc(np.array([3, 2]), np.array([1, 2])) == pytest.approx(3.5 / 4)


@pytest.fixture(scope="module")
def shipped() -> bert_f1.ScorerRecipe:
    """The recipe of the scorer in data/embedded/scorer, with paths from the root of the repository."""
    recipe = schema.read(ROOT / "recipes/scorers" / f"{scorer.SCORER}.yaml", bert_f1.ScorerRecipe)
    return recipe.model_copy(update={"model": str(ROOT / recipe.model), "baseline": str(ROOT / recipe.baseline)})


@pytest.fixture(scope="module")
def score(shipped):
    loaded = bert_f1.open_scorer(shipped)
    return lambda candidates, references: bert_f1.scores(loaded, candidates, references)


def test_the_shipped_scorer_loads_as_float32_with_its_length(shipped):
    import torch
    from transformers import AutoModel, AutoTokenizer

    assert AutoTokenizer.from_pretrained(shipped.model).model_max_length == 512
    assert AutoModel.from_pretrained(shipped.model).dtype == torch.float32
    assert io.size_bytes(Path(shipped.model) / "model.safetensors") <= 12e6


def test_paraphrases_stand_above_the_baseline_and_unrelated_advice_below(shipped, score):
    measured = scorer_evaluate.of_paraphrases(score)
    assert measured["triples"] >= 20
    assert measured["paraphrase_above_unrelated"] == 1
    baseline = bert_f1.baseline_f1(shipped.baseline, shipped.layer)
    assert measured["f1_unrelated"] < baseline < measured["f1_paraphrase"]


def test_the_score_falls_as_words_are_deleted(score):
    answers = [triple["reference"] for triple in io.read_jsonl(scorer_evaluate.PARAPHRASES)]
    means = [
        score([scorer_text.delete_words(answer, share, Random(0)) for answer in answers], answers).mean()
        for share in scorer_evaluate.DELETED
    ]
    assert means[0] == pytest.approx(1)
    assert (np.diff(means) < 0).all()


def test_the_bounds_are_of_the_shipped_weights_and_hold(shipped):
    bounds = io.read_json(Path(shipped.model) / "bounds.json")
    assert bounds["sha256"] == io.sha256(Path(shipped.model) / "model.safetensors")
    assert bounds["layer"] == shipped.layer
    assert all(bounds["met"].values())
    assert all(measured["auc_rewritten"] >= 0.95 for measured in bounds["held_out"].values())


def test_matched_answers_stand_above_shuffled_ones(score, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scorer_evaluate, "PROOF_PAIRS", 40)
    measured = scorer_evaluate.of_pairs(score, scorer.embedded()["embedded_dialogues"], seed=1)
    assert measured["auc_rewritten"] >= 0.95
    assert measured["auc_question"] > 0.6


settings.register_profile("scorer", deadline=None)
settings.load_profile("scorer")
