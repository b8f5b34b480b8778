"""Raw lines: every accepted shape gives the same messages, and everything else is rejected for its own reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import records
from pipeline.data.records import Reason, Rejected

ONE_TURN = [{"role": "user", "content": "咳嗽三天"}, {"role": "assistant", "content": "多喝水"}]
TWO_TURNS = [*ONE_TURN, {"role": "user", "content": "要吃药吗"}, {"role": "assistant", "content": "先观察"}]
SYSTEM = [{"role": "system", "content": "你是医生"}, *ONE_TURN]
SHARE = {"system": "system", "user": "human", "assistant": "gpt"}


def sharegpt(messages):
    return [{"from": SHARE[message["role"]], "value": message["content"]} for message in messages]


ACCEPTED = {
    "alpaca": ("alpaca", {"instruction": "咳嗽三天", "output": "多喝水"}, ONE_TURN),
    "alpaca, empty input": ("alpaca", {"instruction": "咳嗽三天", "input": "", "output": "多喝水"}, ONE_TURN),
    "alpaca, null input": ("alpaca", {"instruction": "咳嗽三天", "input": None, "output": "多喝水"}, ONE_TURN),
    "alpaca, only input": ("alpaca", {"instruction": "", "input": "咳嗽三天", "output": "多喝水"}, ONE_TURN),
    "alpaca, input": (
        "alpaca",
        {"instruction": "咳嗽", "input": "三天", "output": "多喝水"},
        [{"role": "user", "content": "咳嗽\n三天"}, ONE_TURN[1]],
    ),
    "alpaca, history": (
        "alpaca",
        {"instruction": "要吃药吗", "output": "先观察", "history": [["咳嗽三天", "多喝水"]], "id": 7},
        TWO_TURNS,
    ),
    "alpaca, empty history": ("alpaca", {"instruction": "咳嗽三天", "output": "多喝水", "history": []}, ONE_TURN),
    "conversations, from": ("sharegpt", {"conversations": sharegpt(TWO_TURNS)}, TWO_TURNS),
    "conversations, system": ("sharegpt", {"conversations": sharegpt(SYSTEM)}, SYSTEM),
    "conversations, role": ("sharegpt", {"id": "a", "conversations": TWO_TURNS}, TWO_TURNS),
    "conversation, role": ("sharegpt", {"_id": "a", "conversation": TWO_TURNS}, TWO_TURNS),
    "messages": ("messages", {"id": "a", "messages": SYSTEM}, SYSTEM),
    "messages, other keys": ("messages", {"messages": [m | {"weight": 1} for m in ONE_TURN]}, ONE_TURN),
    "white space": (
        "alpaca",
        {"instruction": " 咳嗽三天\r\n", "output": "\u3000多喝水\n"},
        ONE_TURN,
    ),
    "line ends": (
        "alpaca",
        {"instruction": "一\r\n二\r三", "output": "多喝水"},
        [{"role": "user", "content": "一\n二\n三"}, ONE_TURN[1]],
    ),
}


@pytest.mark.parametrize(("shape", "record", "messages"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(shape, record, messages):
    assert read(json.dumps(record).encode()) == (shape, messages)


REJECTED = {
    "empty line": (b"\n", Reason.BLANK),
    "white space": (b" \t\r\n", Reason.BLANK),
    "no JSON": (b"hello", Reason.MALFORMED),
    "cut JSON": (b'{"instruction": "a", "outp', Reason.MALFORMED),
    "two objects": (b'{"instruction": "a", "output": "b"} {}', Reason.MALFORMED),
    "no object": (b'["a", "b"]', Reason.MALFORMED),
    "no UTF-8": ('{"instruction": "咳嗽", "output": "多喝水"}'.encode("gb18030"), Reason.MALFORMED),
    "half a surrogate pair": (b'{"instruction": "a\\ud83d", "output": "b"}', Reason.MALFORMED),
    "too deep": (b"[" * 100_000, Reason.MALFORMED),
    "too many digits": (b'{"instruction": ' + b"1" * 5000 + b"}", Reason.MALFORMED),
    "no known key": (b'{"question": "a", "answer": "b"}', Reason.SHAPE),
    "no output": (b'{"instruction": "a"}', Reason.SHAPE),
    "output in a list": (b'{"instruction": ["a"], "output": ["b"]}', Reason.SHAPE),
    "history of texts": (b'{"instruction": "a", "output": "b", "history": ["c", "d"]}', Reason.SHAPE),
    "history of triples": (b'{"instruction": "a", "output": "b", "history": [["c", "d", "e"]]}', Reason.SHAPE),
    "messages in a text": (b'{"messages": "a"}', Reason.SHAPE),
    "turns of texts": (b'{"messages": ["a", "b"]}', Reason.SHAPE),
    "unknown role": (b'{"messages": [{"role": "tool", "content": "a"}]}', Reason.SHAPE),
    "role in a list": (b'{"messages": [{"role": ["user"], "content": "a"}]}', Reason.SHAPE),
    "content in parts": (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', Reason.SHAPE),
    "empty question": (b'{"instruction": " ", "input": "", "output": "b"}', Reason.EMPTY),
    "empty answer": (b'{"instruction": "a", "output": "\\n"}', Reason.EMPTY),
    "empty turn in history": (b'{"instruction": "a", "output": "b", "history": [["c", ""]]}', Reason.EMPTY),
    "no turns": (b'{"messages": []}', Reason.TURNS),
    "system alone": (b'{"messages": [{"role": "system", "content": "a"}]}', Reason.TURNS),
    "user last": (json.dumps({"messages": TWO_TURNS[:3]}).encode(), Reason.TURNS),
    "assistant first": (json.dumps({"messages": TWO_TURNS[1:]}).encode(), Reason.TURNS),
    "user twice": (json.dumps({"messages": [TWO_TURNS[0], *TWO_TURNS]}).encode(), Reason.TURNS),
    "system in the middle": (json.dumps({"messages": [*ONE_TURN, *SYSTEM]}).encode(), Reason.TURNS),
}


@pytest.mark.parametrize(("line", "reason"), REJECTED.values(), ids=REJECTED)
def test_rejected(line, reason):
    with pytest.raises(Rejected) as caught:
        read(line)
    assert caught.value.reason is reason


def read(line: bytes):
    record = records.parse(line)
    shape = records.shape_of(record)
    return shape, records.dialogue(record, shape)


TEXT = st.text("甲乙 \r\n", max_size=4)
TURN = st.fixed_dictionaries({"role": st.sampled_from([*records.ROLES, "tool"]), "content": TEXT}) | TEXT
JSON = TEXT | st.none() | st.integers() | st.lists(TURN, max_size=5) | st.lists(st.lists(TEXT, max_size=3), max_size=3)
KEYS = st.sampled_from([*records.KEYS, "output", "input", "history"])
LINES = st.binary(max_size=20) | st.dictionaries(KEYS, JSON).map(lambda record: json.dumps(record).encode())


@given(LINES)
def test_any_line_is_a_well_formed_dialogue_or_rejected(line):
    try:
        _, messages = read(line)
    except Rejected:
        return
    roles = [message["role"] for message in messages if message["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert roles
    assert all(message["content"] == message["content"].strip() != "" for message in messages)


@given(st.text())
def test_clean_is_idempotent(text):
    once = records.clean(text)
    assert records.clean(once) == once
    assert "\r" not in once
