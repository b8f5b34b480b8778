"""Conversations that tests open with the tiny models, kept in the test's own folder and closed in the end."""

from __future__ import annotations

import pytest

from pipeline.chatting.setting import DEFAULT_POLICY
from pipeline.chatting.talk import Talk

from .chats import BUDGET, source


@pytest.fixture
def state_home(tmp_path, monkeypatch):
    """Conversations are kept in the test's own folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def talking(llama, kv_gguf, tokenizer, state_home):
    """A function that opens a talk under a policy, as a new process would; all are closed in the end."""
    opened = []

    def open_(policy: str = DEFAULT_POLICY, **changes) -> Talk:
        model = source(llama, kv_gguf, tokenizer, **changes)
        opened.append(Talk(model, model.setting(policy, BUDGET)))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
