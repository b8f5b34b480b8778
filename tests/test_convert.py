"""convert: every line accounted for, no copies, disjoint splits that any run repeats bit for bit."""

from __future__ import annotations

import json
import random
from contextlib import chdir
from io import BytesIO
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import convert, io
from pipeline.data import dedup
from pipeline.data.records import Reason
from pipeline.errors import UserError

SPLITS = ("train", "validation", "test")
HANZI = [chr(code) for code in range(0x4E00, 0x5E00)]


def sentence(seed: int, length: int = 30) -> str:
    """Return a text of random characters, like no other seed's."""
    return "".join(random.Random(seed).choices(HANZI, k=length))


def record(seed: int, length: int = 30) -> dict:
    return {"instruction": sentence(seed, length), "input": "", "output": sentence(-seed - 1, length)}


def lines(records) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in records)


@pytest.fixture(scope="session")
def run(params, tiny_model_dir):
    """Return a function that converts files in a directory of its own; it returns the directory's data/chat."""

    def run(
        root: Path, train: dict[str, bytes], test: dict[str, bytes] | None = None, seed: int = 1, **changes
    ) -> Path:
        files = []
        for split, contents in (("train", train), ("test", test or {})):
            for name, content in contents.items():
                path = root / "data/raw" / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                files.append({"path": f"{split}/{name}", "split": split})
        io.write_json(root / "data/raw/source.json", {"source": "path", "name": "fixture", "files": files})
        (root / "artifacts").mkdir(exist_ok=True)
        if not (root / "artifacts/base").exists():
            (root / "artifacts/base").symlink_to(tiny_model_dir)
        section = params.convert.model_copy(update={"validation": 2, "test": 3, **changes})
        runtime = params.runtime.model_copy(update={"seed": seed})
        with chdir(root):
            convert.main(params.model_copy(update={"convert": section, "runtime": runtime}))
        return root / "data/chat"

    return run


def ids(chat: Path, split: str) -> list[str]:
    return [dialogue["id"] for dialogue in io.read_jsonl(chat / f"{split}.jsonl")]


def questions(chat: Path, split: str) -> list[str]:
    return [dialogue["messages"][0]["content"] for dialogue in io.read_jsonl(chat / f"{split}.jsonl")]


def test_held_out_splits(run, tmp_path):
    chat = run(tmp_path, {"a.jsonl": lines(map(record, range(20)))})
    assert [len(ids(chat, split)) for split in SPLITS] == [15, 2, 3]
    assert {path.name for path in chat.iterdir()} == {"summary.json", *(f"{split}.jsonl" for split in SPLITS)}
    report = io.read_json(chat / "summary.json")
    assert report["files"][0]["shapes"] == {"alpaca": 20}
    assert report["splits"]["train"]["dialogues"] == report["splits"]["train"]["turns"] == 15
    assert {question for split in SPLITS for question in questions(chat, split)} == set(map(sentence, range(20)))


def test_official_test_files_come_first_in_their_order(run, tmp_path):
    chat = run(tmp_path, {"a.jsonl": lines(map(record, range(20)))}, {"t.jsonl": lines(map(record, range(50, 55)))})
    assert questions(chat, "test") == [sentence(seed) for seed in (50, 51, 52)]
    report = io.read_json(chat / "summary.json")
    assert report["dropped"]["beyond_test"] == 2
    assert len(ids(chat, "train")) == 18


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_lines(run, tmp_path):
    records = [record(seed) for seed in range(30)]
    first = run(tmp_path / "a", {"a.jsonl": lines(records)})
    other_order = run(tmp_path / "b", {"a.jsonl": lines(records[::-1])})
    other_seed = run(tmp_path / "c", {"a.jsonl": lines(records)}, seed=2)
    assert ids(first, "test") == ids(other_order, "test") != ids(other_seed, "test")


def test_every_reason_is_counted_where_it_belongs(run, tmp_path):
    long = record(100, 600)
    train = [
        *(record(seed) for seed in range(10)),
        record(3) | {"instruction": f" {sentence(3)[:15]}，\n{sentence(3)[15:]}！"},  # exact but for punctuation
        record(4, 200),
        record(4, 200) | {"output": sentence(-5, 200)[:-1] + "错"},
        record(50),
        record(51, 200) | {"output": sentence(-52, 200)[:-1] + "错"},
        long,
        {"instruction": "a", "output": " "},
        {"question": "a"},
        {"conversations": [{"from": "human", "value": "a"}]},
    ]
    bad = b"\n{\n" + b"\xff\xfe\n"
    tests = [record(50), record(51, 200), record(50)]
    chat = run(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + lines(train) + bad}, {"t.jsonl": lines(tests)}, max_tokens=1800)
    report = io.read_json(chat / "summary.json")
    by_path = {file["path"]: file for file in report["files"]}
    assert by_path["test/t.jsonl"]["dropped"] == {"exact_duplicate": 1}
    assert by_path["train/a.jsonl"]["dropped"] == dict.fromkeys(
        (str(reason) for reason in Reason if reason is not Reason.BEYOND_TEST), 1
    ) | {"malformed": 2}
    assert by_path["train/a.jsonl"]["malformed_lines"] == [21, 22]
    assert by_path["train/a.jsonl"]["kept"] == 11


def test_near_duplicates_stay_where_only_exact_copies_are_to_go(run, tmp_path):
    train = [*(record(seed, 100) for seed in range(10)), record(4, 100) | {"output": sentence(-5, 100)[:-1] + "错"}]
    near = io.read_json(run(tmp_path / "a", {"a.jsonl": lines(train)}) / "summary.json")
    assert near["dropped"]["near_duplicate"] == 1
    exact = io.read_json(run(tmp_path / "b", {"a.jsonl": lines(train)}, near_duplicate=1) / "summary.json")
    assert exact["dropped"]["near_duplicate"] == 0
    assert exact["kept"] == 11


def test_control_tokens_and_turns_are_counted(run, tmp_path):
    hostile = record(99) | {"output": "好<|im_end|>" + sentence(7)}
    roles = ["user", "assistant", "user", "assistant"]
    dialogue = {"conversation": [{"role": role, "content": sentence(turn)} for turn, role in enumerate(roles)]}
    chat = run(tmp_path, {"a.jsonl": lines([hostile, dialogue])}, {"t.jsonl": lines([record(50)])}, validation=1)
    report = io.read_json(chat / "summary.json")
    assert report["control_tokens_defused"] == 1
    trained = [report["splits"][split] for split in ("train", "validation")]
    assert sum(split["turns"] for split in trained) == 3
    assert sum(split["multi_turn_share"] for split in trained) == 1


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ({"a": b"{\n\n"}, {}, ["a: no usable dialogue in 2 lines (1 blank, 1 malformed)"]),
        ({"a": lines([record(1)]), "b": b"[]\n", "c": b"{}\n"}, {}, ["b: no usable", "c: no usable"]),
        ({"a": lines([record(1)])}, {"t": b'{"a": 1}\n'}, ["t: no usable dialogue in 1 lines (1 wrong_shape)"]),
        ({"a": lines(map(record, range(5)))}, {}, ["5 usable", "convert.test (3)", "convert.validation (2)"]),
        ({"a": lines(map(record, range(2)))}, {"t": lines([record(9)])}, ["2 usable", "convert.validation (2)"]),
    ],
)
def test_too_little_is_an_error_and_leaves_the_former_dialogues(run, tmp_path, train, test, words):
    chat = run(tmp_path, {"a.jsonl": lines(map(record, range(20)))})
    before = {path.name: io.sha256(path) for path in chat.iterdir()}
    with pytest.raises(UserError) as caught:
        run(tmp_path, train, test)
    text = "\n".join(caught.value.problems)
    assert all(word in text for word in words), text
    assert {path.name: io.sha256(path) for path in chat.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["chat", "raw"]


def test_convert_before_download_is_an_error(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/raw/source\.json: not found"):
        convert.main(params)


# Lines of every kind: few distinct dialogues, so that copies within and across files are common.
DIALOGUES = st.integers(0, 12).map(record)
NEAR = st.tuples(DIALOGUES, st.integers(0, 29)).map(
    lambda drawn: drawn[0] | {"output": drawn[0]["output"][: drawn[1]] + "错" + drawn[0]["output"][drawn[1] + 1 :]}
)
SHAREGPT = DIALOGUES.map(
    lambda item: {
        "conversations": [{"from": "human", "value": item["instruction"]}, {"from": "gpt", "value": item["output"]}]
    }
)
WRONG = st.sampled_from([{}, {"instruction": 1}, {"messages": []}, {"instruction": "", "output": "a"}])
LINE = (DIALOGUES | NEAR | SHAREGPT | WRONG).map(
    lambda item: json.dumps(item, ensure_ascii=False).encode()
) | st.binary(max_size=8).map(lambda data: data.replace(b"\n", b""))
FILE = st.tuples(st.lists(LINE, max_size=30), st.sampled_from([b"", b"\xef\xbb\xbf"])).map(
    lambda drawn: drawn[1] + lines(map(record, range(200, 206))) + b"\n".join(drawn[0])
)


@settings(max_examples=25, deadline=None)
@given(train=st.lists(FILE, min_size=1, max_size=2), test=st.lists(st.lists(LINE, max_size=6), max_size=1))
def test_laws(run, train, test):
    """Lines are kept or dropped; splits are disjoint; a second run writes the same bytes; clean dialogues all stay."""
    raw = {f"train/{number}.jsonl": content for number, content in enumerate(train)}
    raw |= {f"test/{number}.jsonl": lines([record(300)]) + b"\n".join(content) for number, content in enumerate(test)}
    files = {split: {Path(k).name: v for k, v in raw.items() if k.startswith(split)} for split in ("train", "test")}
    with TemporaryDirectory() as first, TemporaryDirectory() as second, TemporaryDirectory() as third:
        chat = run(Path(first), **files, near_duplicate=0.5)
        assert_accounted(raw, io.read_json(chat / "summary.json"))
        assert_disjoint(chat)
        again = run(Path(second), **files, near_duplicate=0.5)
        assert contents(chat) == contents(again)
        clean = {split: (chat / f"{split}.jsonl").read_bytes() for split in SPLITS}
        once_more = run(
            Path(third),
            {"a": clean["train"] + clean["validation"]},
            {"t": clean["test"]},
            near_duplicate=0.5,
        )
        assert io.read_json(once_more / "summary.json")["dropped"] == dict.fromkeys(map(str, Reason), 0)
        assert all(set(ids(chat, split)) == set(ids(once_more, split)) for split in SPLITS if test or split == "test")


def contents(chat: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in chat.iterdir()}


def assert_accounted(raw: dict[str, bytes], report: dict) -> None:
    """Every physical line of every file is kept or dropped for one reason."""
    for file in report["files"]:
        assert file["lines"] == len(BytesIO(raw[file["path"]]).readlines())
        assert file["lines"] == file["kept"] + sum(file["dropped"].values())
    assert sum(file["kept"] for file in report["files"]) == sum(s["dialogues"] for s in report["splits"].values())
    assert set(report["overlap"].values()) == {0}


def assert_disjoint(chat: Path) -> None:
    """No dialogue stands in two splits, and no training or validation dialogue is like a test one."""
    splits = {split: list(io.read_jsonl(chat / f"{split}.jsonl")) for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not {d["id"] for d in splits[a]} & {d["id"] for d in splits[b]}
    grams = {s: [dedup.shingles(dedup.normal_form(d["messages"])) for d in found] for s, found in splits.items()}
    for a, b in product(grams["train"] + grams["validation"], grams["test"]):
        assert dedup.jaccard(a, b) <= 0.55
