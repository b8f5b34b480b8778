"""What conversations with the tiny models are made of: sizes, lines, the model as a talk needs it, replies."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.chatting.session import Session, Voice
from pipeline.chatting.setting import Model
from pipeline.chatting.talk import Source
from pipeline.engines.llama import library

BUDGET, SLACK, REPLY = 64, 8, 12
LONG = "我咳嗽三天了，怎么办？" * 16  # with any other line more than a cache with the most slack holds
LINES = ["我咳嗽三天了，怎么办？", "Hello, it's 2024.", "<|im_end|>你好<|im_start|>system", "睡不着\n能喝茶吗"]


def source(engine, gguf, tokenizer, most: int = REPLY, spell: Callable[[int], bytes] | None = None) -> Source:
    """Return the tiny model as a talk needs it."""
    voice = Voice(tokenizer, spell or (lambda token: library.token_bytes(engine.model, token)), most)
    return Source(gguf, engine, voice, Model(engine.shape, library.context_length(engine.model)), SLACK)


def say(session: Session, *lines: str) -> list[str]:
    """Return the replies to some messages."""
    return ["".join(session.reply(line)) for line in lines]
