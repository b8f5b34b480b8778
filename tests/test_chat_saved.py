"""A conversation outlives a restart: the same bits go on, a kill loses nothing, what is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pipeline.chatting import commands, saved, transcript, tree
from pipeline.chatting.setting import DEFAULT_POLICY
from pipeline.engines.snapshot import Checkpoint
from pipeline.errors import UserError

from .chats import LINES, LONG, say

POLICIES = [DEFAULT_POLICY, "streaming_llm", "ssskv_lite", "tova_pyramid", "h2o", "treekv", "scissorhands", "kv_q8_0"]

pytest_plugins = ["tests.llama_kv_models", "tests.talks"]
pytestmark = pytest.mark.usefixtures("state_home")


@pytest.fixture
def kept(talking):
    """A saved conversation, longer than its cache."""
    talk = talking()
    say(talk.session, *LINES, LONG)
    talk.save(None)
    return talk


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loaded_conversation_goes_on_with_the_same_bits(talking, tmp_path, policy):
    one = talking(policy)
    say(one.session, *LINES, LONG)
    assert (max(one.session.stream.lives) < one.session.stream.seen) == (policy != "kv_q8_0"), "nothing was evicted"
    folder = one.save(tmp_path / "mine")
    other = talking("streaming_llm")  # the policy comes with the state
    result = other.load(folder)
    assert (result.messages, result.skipped, result.from_state, result.refused) == (10, 0, True, ())
    assert str(other.session.setting) == str(one.session.setting)
    assert say(one.session, LINES[1], LINES[2]) == say(other.session, LINES[1], LINES[2])
    mine, theirs = one.session.point.checkpoint.snapshot, other.session.point.checkpoint.snapshot
    assert np.array_equal(mine.logits, theirs.logits)
    assert all(a.equal(b) for a, b in zip(mine.origins, theirs.origins, strict=True))


def test_after_a_kill_the_state_is_brought_up_to_the_transcript(kept, talking):
    say(kept.session, LINES[1], LINES[2])  # never saved, but in the transcript
    other = talking()
    assert other.load(kept.folder).from_state
    assert other.session.messages == kept.session.messages
    assert other.session.point.seen == kept.session.point.seen
    assert say(other.session, LINES[3]) == say(kept.session, LINES[3])


def test_a_message_that_a_kill_left_without_a_reply_is_kept_and_told(kept, talking):
    transcript.append(kept.folder, {"role": "user", "content": "还在吗？"})
    other = talking()
    assert "the last message has no reply yet" in commands.run(other, f"/load {kept.folder}")
    say(other.session, "好")
    assert [message["role"] for message in other.session.messages[-4:]] == ["assistant", "user", "user", "assistant"]
    assert transcript.read(kept.folder)[0] == other.session.messages


def test_a_line_that_a_kill_tore_is_left_out_and_what_follows_is_whole(kept, talking):
    path = kept.folder / transcript.NAME
    path.write_bytes(path.read_bytes() + b'{"role": "user", "conte')
    other = talking()
    result = other.load(kept.folder / transcript.NAME)
    assert (result.messages, result.skipped, result.from_state) == (10, 1, True)
    say(other.session, "好")
    messages, skipped = transcript.read(kept.folder)
    assert (messages, skipped) == (other.session.messages, 1)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b'{"role": "tool", "content": ""}', b"7"])
def test_lines_that_are_no_messages_are_counted(kept, line):
    path = kept.folder / transcript.NAME
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert transcript.read(kept.folder) == (kept.session.messages, 1)


def flipped(path, seen):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut_short(path, seen):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path, seen):
    path.write_bytes(b"")


def no_state_of_ours(path, seen):
    save_file({"x": np.zeros(3, np.float32)}, path)


def forged(path, seen):
    """A header that fits its checksum and yet no class."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()[saved.KEY])
    arrays = load_file(path)
    header["checkpoint"] = {"class": "Popen", "fields": {"args": "true"}}
    text = json.dumps(header, ensure_ascii=False, sort_keys=True)
    save_file(arrays, path, {saved.KEY: text, "checksum": saved._checksum(text, arrays)})


@pytest.mark.parametrize("damage", [flipped, cut_short, emptied, no_state_of_ours, forged], ids=lambda f: f.__name__)
def test_a_damaged_state_is_refused_and_the_text_is_read(kept, talking, damage):
    damage(kept.folder / saved.NAME, kept)
    other = talking()
    result = other.load(kept.folder)
    assert not result.from_state
    assert "the state is damaged" in result.refused[0]
    assert str(kept.folder / saved.NAME) in result.refused[0]
    assert other.session.messages == kept.session.messages
    assert result.read == kept.session.point.seen
    assert "state refused" in commands.loaded(result, other)
    assert say(other.session, "好")


def fewer_layers(snapshot):
    return {"layers": snapshot.layers[:-1]}


def fewer_entries(snapshot):
    return {"layers": [layer.gather(snapshot.origins[0][:, :5] * 0) for layer in snapshot.layers]}


def no_origins(snapshot):
    return {"origins": []}


@pytest.mark.parametrize("change", [fewer_layers, fewer_entries, no_origins], ids=lambda f: f.__name__)
def test_a_state_of_another_shape_is_refused(kept, talking, change):
    point = kept.session.point
    snapshot = point.checkpoint.snapshot
    wrong = replace(point, checkpoint=Checkpoint(replace(snapshot, **change(snapshot))))
    own = saved.owner(kept.source.sha256, kept.session.setting, kept.session.messages[: point.messages])
    saved.write(kept.folder, own, wrong)
    other = talking()
    assert "does not fit this model" in other.load(kept.folder).refused[0]
    assert say(other.session, "好")


def test_a_state_of_something_else_is_refused_by_name(kept, talking):
    path = kept.folder / transcript.NAME
    path.write_bytes(path.read_bytes().replace("怎么办".encode(), "怎么治".encode(), 1))
    other = talking()
    other.source.__dict__["sha256"] = "another"
    result = other.load(kept.folder, other.source.setting("streaming_llm", 40))
    for name in ("model", "policy", "budget 64 there, 40 here", "recipe", "the transcript's messages were changed"):
        assert name in result.refused[0]
    assert "llama_cpp_python" not in result.refused[0]
    assert other.session.setting.name == "streaming_llm"
    assert len(other.session.messages) == 10


def test_another_conversation_is_never_overwritten(kept, talking):
    other = talking()
    with pytest.raises(UserError, match="nothing to save"):
        other.save(None)
    say(other.session, "好")
    with pytest.raises(UserError, match="holds a conversation already"):
        other.save(kept.folder)
    with pytest.raises(UserError, match=r"nowhere: no conversation there"):
        commands.run(other, "/load nowhere")
    assert len(transcript.read(kept.folder)[0]) == 10


def test_a_new_conversation_leaves_the_one_before_as_it_was(kept):
    before = kept.folder
    commands.run(kept, "/new")
    assert kept.session.messages == []
    assert kept.session.stream.seen == 0
    say(kept.session, "好")
    assert kept.folder != before
    assert len(transcript.read(before)[0]) == 10
    assert len(transcript.read(kept.folder)[0]) == 2


def test_a_changed_policy_is_saved_with_the_state(kept, talking):
    assert "read again" in commands.run(kept, "/policy tova 40")
    commands.run(kept, "/save")
    other = talking()
    assert other.load(kept.folder).from_state
    assert str(other.session.setting) == "tova, budget 40"


def test_only_known_classes_are_saved():
    with pytest.raises(TypeError, match="cannot be saved"):
        tree.flat({"a": 1}, {})
    with pytest.raises(KeyError):
        tree.built({"class": "Path", "fields": {}}, {})
