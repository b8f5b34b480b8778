"""Session: one conversation on one stream; each turn feeds the new messages alone, and replies come token by token.

A reply is generated behind an opening that history does not show, and may be broken off anywhere. So the stream goes
back to where the user's message ended, and the reply is fed as history together with the next message. What the model
has read is then always what :mod:`pipeline.prompts` renders, however the reply ended.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import prompts
from pipeline.chatting.setting import Setting, cache_for, stream_for
from pipeline.engines import greedy
from pipeline.engines.cache import Cache, KvEngine
from pipeline.engines.snapshot import Checkpoint
from pipeline.engines.stream import Stream
from pipeline.errors import UserError
from pipeline.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDED, TOO_LONG, FULL, STOPPED = "ended", "too long", "context full", "stopped"


@dataclass(frozen=True)
class Voice:
    """How a model's tokens become text, and how long a reply may be."""

    tokenizer: PreTrainedTokenizerBase
    spell: Callable[[int], bytes]  # the bytes of a token; none for control tokens
    max_tokens: int


@dataclass(frozen=True)
class Point:
    """The stream after some messages, the last of them a user's."""

    messages: int
    checkpoint: Checkpoint

    @property
    def seen(self) -> int:
        """Tokens of these messages."""
        return self.checkpoint.snapshot.seen


@dataclass(frozen=True)
class Turn:
    """One reply: how it ended, tokens and seconds on the wall."""

    ending: str
    read: int  # tokens of the messages that were new to the stream
    tokens: int  # of the reply
    first_s: float  # until its first token
    rest_s: float  # for all others

    @property
    def per_second(self) -> float | None:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / self.rest_s if self.tokens > 1 else None


class Session:
    """A conversation under a policy. ``keep`` is told of every message as soon as it is complete."""

    def __init__(self, engine: KvEngine, voice: Voice, chosen: Setting, keep: Callable[[Message], None]):
        self.engine, self._voice, self._keep = engine, voice, keep
        self._opening = prompts.opening_ids(voice.tokenizer)
        self._stop = prompts.end_of_turn_id(voice.tokenizer)
        self._cache: Cache | None = None
        self._open(chosen, [])

    def reply(self, text: str) -> Iterator[str]:
        """Yield the reply to a message in well-formed pieces; closing the iterator ends it there.

        Raises UserError, with nothing changed, if the message does not fit the context any more.
        """
        asked = {"role": "user", "content": text}
        ids = self._ids([*self.messages[self._point.messages :], asked])
        self._check_limit(self.setting, self._point.seen + len(ids))
        self.overlong += len(self._ids([asked])) > max(self.setting.most)
        started = time.perf_counter()
        self._add(asked)
        reply = _Reply()
        try:
            self._advance(ids)
            yield from self._generated(reply)
        finally:
            self._add({"role": "assistant", "content": "".join(reply.pieces)})
            self.last = reply.turn(len(ids), started)

    def read_again(self, chosen: Setting) -> int:
        """Go on under another setting, which reads the text anew; return the tokens it read.

        Raises UserError, with nothing changed, if the text is longer than the setting allows.
        """
        self.start(self.messages, chosen)
        return self._point.seen

    def start(self, messages: Sequence[Message], chosen: Setting, point: Point | None = None) -> None:
        """Go on with other messages, from a point on if one is given; raise UserError if they do not fit.

        Raises RuntimeError or ValueError for a point that is none of this model and setting; the session is then as
        it was.
        """
        asked = max((i + 1 for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        fed = point.messages if point else 0
        ids = self._ids(messages[fed:asked]) if asked > fed else []
        self._check_limit(chosen, (point.seen if point else 0) + len(ids))
        self._open(chosen, messages, point)
        if ids:
            self._advance(ids, asked)

    @property
    def point(self) -> Point:
        """Where the stream stood after the newest message of the user: what goes on to bring the same replies."""
        return self._point

    @property
    def stream(self) -> Stream:
        """The stream, for what it tells of itself."""
        return self._stream

    def summary(self) -> str:
        """Return the text that stands for what was evicted; empty where the policy makes none."""
        return b"".join(map(self._voice.spell, self._stream.summary)).decode("utf-8", "replace")

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values."""
        return self._cache.kv_bytes()

    def close(self) -> None:
        """Free the cache."""
        self._cache.close()

    def _open(self, chosen: Setting, messages: Sequence[Message], point: Point | None = None) -> None:
        cache = cache_for(self.engine, chosen)
        try:
            stream = stream_for(self.engine, cache, chosen, self._voice.tokenizer)
            if point:
                stream.resume(point.checkpoint)
        except BaseException:
            cache.close()
            raise
        old, self._cache = self._cache, cache
        self._stream, self.setting = stream, chosen
        if old:
            old.close()
        self.messages: list[Message] = list(messages)
        self._point = point or Point(0, stream.checkpoint())
        self._ahead = False  # whether the stream has left its point
        self.last: Turn | None = None
        self.overlong = 0  # messages longer than the cache

    def _add(self, message: Message) -> None:
        self.messages.append(message)
        self._keep(message)

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        return prompts.history_ids(self._voice.tokenizer, messages)

    def _advance(self, ids: Sequence[int], messages: int | None = None) -> None:
        """Feed what follows the point, and move the point behind it."""
        if self._ahead:
            self._stream.resume(self._point.checkpoint)
        self._ahead, self._stream.tentative = True, False
        self._stream.feed(ids)
        self._point = Point(len(self.messages) if messages is None else messages, self._stream.checkpoint())
        self._ahead = False

    def _generated(self, reply: _Reply) -> Iterator[str]:
        self._ahead = self._stream.tentative = True
        logits = self._stream.feed(self._opening)
        most = self._voice.max_tokens
        left = most if self.setting.limit is None else self.setting.limit - self._stream.seen + 1
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        for token in greedy.continuation(self._stream, logits[-1], min(most, left), self._stop):
            reply.note()
            if token == self._stop:
                reply.ending = ENDED
                return
            if piece := characters.decode(self._voice.spell(token)):
                reply.pieces.append(piece)
                yield piece
        reply.ending = TOO_LONG if most <= left else FULL

    def _check_limit(self, chosen: Setting, tokens: int) -> None:
        """Raise UserError unless ``tokens``, an opening and a first token are within the setting's limit."""
        needed = tokens + len(self._opening) + 1
        if chosen.limit is not None and needed > chosen.limit:
            raise UserError(
                f"the context is full: the conversation takes {needed} tokens, {chosen} holds at most {chosen.limit}; "
                "a policy that stays within a budget goes on for ever (`/policy NAME`), `/new` starts afresh"
            )


class _Reply:
    """What is known of a reply while it comes."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.ending = STOPPED
        self._times: list[float] = []

    def note(self) -> None:
        """Note the time of a token."""
        self._times.append(time.perf_counter())

    def turn(self, read: int, started: float) -> Turn:
        """Return the reply's figures."""
        now = time.perf_counter()
        first, last = (self._times[0], self._times[-1]) if self._times else (now, now)
        return Turn(self.ending, read, len(self._times), first - started, last - first)
