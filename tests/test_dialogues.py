"""The sample dialogues: regenerated to the byte, safe, without near duplicates and without leaks between splits."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.io import read_jsonl, size_bytes
from pipeline.nano.dialogues.__main__ import DIALOGUES, main
from pipeline.nano.dialogues.knowledge import KNOWLEDGE, load
from pipeline.nano.dialogues.novelty import Seen, jaccard, shingles

COUNTS = {"train": 2500, "test": 500}
TOXIC = re.compile(  # raw or processed herbs that the Pharmacopoeia marks as toxic, and some feared for the liver
    "附子|川乌|草乌|细辛|马钱子|雄黄|朱砂|巴豆|甘遂|大戟|芫花|商陆|牵牛子|斑蝥|蟾酥|全蝎|蜈蚣|水蛭|关木通|马兜铃|"
    "(?<!法)半夏|天南星|苍耳子|吴茱萸|苦杏仁|川楝子|艾叶|蒺藜|蛇床子|白果|重楼|何首乌|雷公藤|黄药子|轻粉|洋金花"
)
UNCLEAN = re.compile(r"[，、；：。？]{2}|^[，。、]|[^，。、；：？！\u4e00-\u9fffD0-9.]|\d{6}")
OPPOSED = [  # pairs that must not meet in one formula (the eighteen oppositions and nineteen fears)
    ({"甘草", "炙甘草"}, {"海藻"}),
    ({"人参"}, {"五灵脂"}),
    ({"肉桂"}, {"赤石脂"}),
    ({"郁金"}, {"丁香"}),
]


@pytest.fixture(scope="module")
def knowledge():
    return load()


@pytest.fixture(scope="module")
def splits():
    return {split: list(read_jsonl(DIALOGUES / f"{split}.jsonl")) for split in COUNTS}


@pytest.fixture(scope="module")
def records(splits):
    return splits["train"] + splits["test"]


def questions(record):
    return [question for question, _ in record.get("history", [])] + [record["instruction"]]


def answers(record):
    return [answer for _, answer in record.get("history", [])] + [record["output"]]


def text(record):
    return "\n".join(questions(record) + answers(record))


def nearest(texts, others):
    """Return for each text its greatest similarity to one of ``others``, by an exact inverted index of 5-grams."""
    index, sizes = defaultdict(list), []
    for number, grams in enumerate(map(five_grams, others)):
        sizes.append(len(grams))
        for gram in grams:
            index[gram].append(number)
    for grams in map(five_grams, texts):
        shared = Counter(number for gram in grams for number in index.get(gram, ()))
        yield max((n / (len(grams) + sizes[number] - n) for number, n in shared.items()), default=0.0)


def five_grams(string):
    return {string[i : i + 5] for i in range(max(1, len(string) - 4))}


def test_regenerates_to_the_byte(tmp_path):
    main(["--out", str(tmp_path)])
    for split in COUNTS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (DIALOGUES / f"{split}.jsonl").read_bytes()


def test_counts_and_size(splits, records):
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS
    assert all(sum("history" in row for row in rows) >= len(rows) / 4 for rows in splits.values())
    assert size_bytes(DIALOGUES) < 4_000_000


def test_schema_and_lengths(records):
    for record in records:
        assert set(record) - {"history"} == {"instruction", "input", "output"}
        assert record["input"] == ""
        assert all(len(turn) == 2 for turn in record.get("history", [[0, 0]]))
        assert all(10 <= len(message) <= 240 for message in answers(record)), record
        assert all(4 <= len(message) <= 160 for message in questions(record)), record
        assert "history" in record or len(record["output"]) >= 50


def test_text_is_clean(records):
    for record in records:
        assert record["output"].endswith(("祝您安康。", "祝您平安。"))
        assert not any(UNCLEAN.search(message) for message in questions(record) + answers(record)), record


def test_no_prompt_or_output_repeats(records):
    prompts = Counter(json.dumps([record.get("history"), record["instruction"]]) for record in records)
    outputs = Counter(record["output"] for record in records)
    assert max(prompts.values()) == 1
    assert max(outputs.values()) == 1


def test_no_near_duplicates(records):
    texts = [text(record) for record in records]
    random.Random(0).shuffle(texts)
    assert max(nearest(texts[:900], texts[900:])) < 0.8
    sample = [five_grams(string) for string in texts[:300]]
    assert max(jaccard(a, b) for i, a in enumerate(sample) for b in sample[:i]) < 0.8


def test_no_test_answer_can_be_copied(splits):
    test, train = ([answer for record in splits[split] for answer in answers(record)] for split in ("test", "train"))
    assert max(nearest(test, train)) < 0.7


def test_doses_are_within_the_herbs_ranges(records, knowledge):
    names = "|".join(sorted(knowledge.herbs, key=len, reverse=True))
    spoken = "\n".join(answer for record in records for answer in answers(record))
    doses = re.findall(f"({names})(\\d+)克", spoken)
    assert len(doses) > 5000
    assert all(knowledge.herbs[name].low <= int(grams) <= knowledge.herbs[name].high for name, grams in doses)


def test_no_toxic_herb_is_dosed(records, knowledge):
    assert not [name for name in knowledge.herbs if TOXIC.search(name)]
    for record in records:
        assert not any(re.search(f"({TOXIC.pattern})\\d+克", answer) for answer in answers(record)), record


def test_no_opposed_herbs_in_a_formula(knowledge):
    for formula in knowledge.formulas.values():
        assert not any(a & set(formula.herbs) and b & set(formula.herbs) for a, b in OPPOSED), formula.name


def test_children_and_pregnant_women_get_no_doses(records, knowledge):
    childrens = "|".join(condition.name for condition in knowledge.conditions if condition.who == "child")
    guarded = [record for record in records if re.search(rf"怀孕\d|儿科医师|{childrens}", text(record))]
    assert len(guarded) > 200
    for record in guarded:
        assert not any(re.search(r"\d克", answer) for answer in answers(record)), record


def test_emergencies_go_to_hospital(records, knowledge):
    signs = [emergency.sign for emergency in knowledge.emergencies]
    urgent = [record for record in records if any(sign in record["instruction"] for sign in signs)]
    assert len(urgent) == 140
    for record in urgent:
        assert "120" in record["output"] or "急诊" in record["output"]
        assert not re.search(r"\d克", record["output"])


def test_patients_are_plausible(records):
    for record in records:
        told = "\n".join(questions(record))
        if re.search("，男，|^男|我爸|我老公|我哥|男患者", told):
            assert not re.search("月经|白带|经期|经前|怀孕|乳房|产后", told), told
        if re.search("我女儿|我儿子|孙子|小外甥", told):
            assert not re.search("抽烟|喝酒|加班|上了年纪", told), told


@pytest.mark.parametrize(
    ("table", "old", "new", "problem"),
    [
        ("formulas.yaml", "甘草: 3}", "甘草: 30}", "甘草 has 30 g; expected 2 to 10"),
        ("formulas.yaml", "荆芥: 10", "荆芥穗: 10", "荆芥穗 is not in herbs.yaml"),
        ("conditions/bones.yaml", "formula: 青娥丸", "formula: 青蛾丸", "青蛾丸 is not in formulas.yaml"),
        ("conditions/bones.yaml", "care: [热敷二十分钟, ", "care: [", "落枕: care has 3 entries; expected 4"),
        ("safety.yaml", "avoid: [桃仁", "avoid: [桃人", "桃人 is not in herbs.yaml"),
    ],
)
def test_contradictions_in_the_tables_are_named(tmp_path, table, old, new, problem):
    shutil.copytree(KNOWLEDGE, tmp_path / "knowledge")
    path = tmp_path / "knowledge" / table
    broken = path.read_text(encoding="utf-8").replace(old, new, 1)
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(problem)):
        load(tmp_path / "knowledge")


short = st.text(alphabet="甲乙丙丁", min_size=1, max_size=40)


@given(st.lists(short, max_size=8), short, st.floats(0.05, 1))
@settings(deadline=None)
def test_the_bitmap_filter_loses_nothing(texts, new, bound):
    seen = Seen(bound)
    for string in texts:
        seen.add(shingles(string))
    exact = any(jaccard(frozenset(five_grams(string)), frozenset(five_grams(new))) >= bound for string in texts)
    assert seen.near(shingles(new)) == exact
