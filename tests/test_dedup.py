"""Duplicates: the shingles, the bands and the greedy choice against plain Python and all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import dedup

HANZI = [chr(code) for code in range(0x4E00, 0x5E00)]
THRESHOLD = 0.8


def text_of(seed: int, length: int = 200) -> str:
    return "".join(random.Random(seed).choices(HANZI, k=length))


def edited(text: str, edits: int, seed: int) -> str:
    """Return ``text`` with characters of so many places replaced."""
    rng, chars = random.Random(seed), list(text)
    for place in rng.sample(range(len(chars)), edits):
        chars[place] = "错"
    return "".join(chars)


def drop(texts: list[str], threshold: float = THRESHOLD, fixed: int = 0) -> dict[int, int]:
    keys = np.stack([dedup.bands(text, dedup.rows_per_band(threshold)) for text in texts])
    return dedup.near_duplicates(keys, texts.__getitem__, threshold, fixed)


def plain_jaccard(a: str, b: str) -> float:
    grams = [{text[i : i + 5] for i in range(len(text) - 4)} or {text} for text in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


@given(st.text(max_size=40), st.text(max_size=40))
def test_jaccard_is_that_of_sets_of_five_characters(a, b):
    a, b = a.ljust(5), b.ljust(5)
    assert dedup.jaccard(dedup.shingles(a), dedup.shingles(b)) == pytest.approx(plain_jaccard(a, b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("咳嗽，三天！", "咳嗽三天"),
        ("ＡＢＣ１２３", "abc123".upper()),
        ("多 喝\n水", "多喝水"),
        ("一①", "一1"),
    ],
)
def test_punctuation_width_and_space_do_not_tell_dialogues_apart(a, b):
    forms = [dedup.normal_form([{"role": "user", "content": text}]) for text in (a, b)]
    assert forms[0] == forms[1]
    assert dedup.key_of(forms[0]) == dedup.key_of(forms[1])


def test_turns_tell_dialogues_apart():
    one = [{"role": "user", "content": "甲乙"}, {"role": "assistant", "content": "丙"}]
    two = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙丙"}]
    assert dedup.normal_form(one) != dedup.normal_form(two)


def test_keys_are_the_same_on_every_machine():
    assert f"{dedup.key_of('咳嗽三天'):016x}" == "b9ddb534ae2c87a7"
    assert f"{int(dedup.bands('咳嗽三天怎么办', 6)[0]):016x}" == "aa318bebbd31f651"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(100, 600), st.integers(0, 10**6))
def test_one_changed_character_of_a_long_text_is_a_near_duplicate_and_another_text_is_not(seed, length, place):
    text = text_of(seed, length)
    assert drop([text, text_of(seed + 1, length), edited(text, 1, place)]) == {2: 0}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 99)), min_size=2, max_size=30))
def test_the_choice_is_that_of_all_pairs_up_to_the_recall_at_the_threshold(family):
    texts = [edited(text_of(origin), edits, seed) for origin, edits, seed in family]
    dropped = drop(texts)
    for index, text in enumerate(texts):
        kept = [other for other in range(index) if other not in dropped]
        nearest = max((plain_jaccard(text, texts[other]) for other in kept), default=0)
        if index in dropped:
            assert dropped[index] in kept
            assert plain_jaccard(text, texts[dropped[index]]) > THRESHOLD
        else:
            assert nearest <= THRESHOLD + 0.1


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_pairs_at_the_threshold_are_found(threshold):
    rows = dedup.rows_per_band(threshold)
    shared, pairs = 0, 300
    for seed in range(pairs):
        common = text_of(seed, 400)
        own = round(396 * (1 - threshold) / (2 * threshold))  # so many shingles of its own beside 396 common ones
        a, b = (common + text_of(seed * 2 + side + 10**6, own) for side in (0, 1))
        shared += bool((dedup.bands(a, rows) == dedup.bands(b, rows)).any())
    assert shared / pairs > 0.97


def test_fixed_texts_are_never_dropped_but_compared_with():
    text = text_of(1)
    assert drop([text, edited(text, 1, 1), edited(text, 1, 2)], fixed=2) == {2: 0}


def test_many_texts_of_one_template_are_handled_in_bounded_time_and_kept_where_unlike():
    texts = [text_of(0, 100) + text_of(seed, 60) for seed in range(1, 400)]
    assert drop(texts) == {}
    assert drop([*texts, edited(texts[7], 1, 3)]) == {399: 7}


@pytest.mark.parametrize("text", ["", "一", "一二三四"])
def test_short_texts_equal_only_themselves(text):
    assert drop([text, text, text + "五"]) == {1: 0}
