"""Recall tasks: exact depth, determinism, the split from training, and the score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.tasks import facts, recall
from pipeline.tasks.pools import pools

KINDS = list(recall.KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [recall.LEAST_DEPTH, 256, 700])
def test_prompt_has_exact_depth_and_tells_the_answer_early(tokenizer, kind, depth):
    for task in recall.tasks(tokenizer, kind, depth, n=4, seed=1):
        assert len(task.prompt_ids) == depth
        start, end = task.fact_span
        assert task.answer in tokenizer.decode(task.prompt_ids[start:end])
        assert start < 0.75 * task.question_at
        assert tokenizer.decode(task.answer_ids) == task.answer
        assert end <= task.question_at < depth
        assert tokenizer.decode(task.prompt_ids[task.question_at :]).endswith("：")


@pytest.mark.parametrize("kind", KINDS)
def test_questions_about_one_context_ask_for_several_of_its_facts(tokenizer, kind):
    (single,) = recall.tasks(tokenizer, kind, 512, 1, seed=1)
    (several,) = recall.contexts(tokenizer, kind, 512, 1, seed=1, questions=3)
    (everything,) = recall.contexts(tokenizer, kind, 512, 1, seed=1, questions=1000)
    assert len(several) == 3 <= len(everything) < 1000
    assert len({task.prompt_ids[: task.question_at] for task in several}) == 1
    assert len({task.prompt_ids[task.question_at :] for task in several}) == 3
    assert max(len(task.prompt_ids) for task in several) == len(single.prompt_ids) == 512
    for task in several:
        start, end = task.fact_span
        assert task.answer in tokenizer.decode(task.prompt_ids[start:end])


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_tasks_and_a_task_does_not_depend_on_how_many(tokenizer, kind):
    few, many = (recall.tasks(tokenizer, kind, 256, n, seed=3) for n in (2, 4))
    assert few == many[:2]
    assert few != recall.tasks(tokenizer, kind, 256, 2, seed=4)


def test_phrasings_of_test_and_training_are_disjoint():
    training, test = pools().training, pools().test
    for part in ("facts", "records", "questions"):
        assert not set(getattr(training, part)) & set(getattr(test, part))


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(facts.FIELDS)), st.booleans())
def test_every_drawn_name_and_value_is_on_its_side_of_the_split(rng, field, test):
    told = facts.fact(rng, [field], test, set())
    assert facts.held_out(told.person) == test
    assert facts.held_out(told.value) == test


@pytest.mark.parametrize("pool", ["words", "herbs", "cities"])
def test_enough_words_on_either_side_that_a_guess_is_rarely_right(pool):
    test = sum(map(facts.held_out, getattr(pools(), pool)))
    assert 10 <= test <= len(getattr(pools(), pool)) / 2


def test_all_problems_at_once(tokenizer):
    with pytest.raises(UserError) as error:
        recall.tasks(tokenizer, "needle", 10, 1, 0)
    assert len(error.value.problems) == 2
    assert "did you mean 'needles'" in error.value.problems[0]


def test_score_wants_the_right_first_tokens(tokenizer):
    asked = recall.tasks(tokenizer, "pairs", 256, 4, 0)
    answers = [list(task.answer_ids) for task in asked]
    answers[0] = [*answers[0], 5]  # what follows the answer does not count
    answers[1] = answers[1][:-1]
    answers[2] = []
    assert recall.score(asked, answers)["value"] == 0.5


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (96, 96, 0.9615, 1.0)]
)
def test_wilson_interval(right, n, low, high):
    assert recall.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(pair):
    right, n = pair
    low, high = recall.wilson(right, n)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1
