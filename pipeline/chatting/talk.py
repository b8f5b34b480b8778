"""Talk: a session and the folder that keeps it, so that a kill loses nothing and a restart goes on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import io
from pipeline.chatting import saved, transcript
from pipeline.chatting.session import Point, Session, Voice
from pipeline.chatting.setting import Model, Setting, setting
from pipeline.engines.cache import KvEngine
from pipeline.errors import UserError
from pipeline.prompts import Message


@dataclass(frozen=True)
class Source:
    """The model that is talked to, and what the settings of its policies need besides."""

    gguf: Path
    engine: KvEngine
    voice: Voice
    model: Model
    slack: int

    @cached_property
    def sha256(self) -> str:
        """The checksum of the model's file."""
        return io.sha256(self.gguf)

    def setting(self, name: str, budget: int) -> Setting:
        """Return a policy for a conversation; raise UserError with every misfit."""
        return setting(name, budget, self.slack, self.model)


@dataclass(frozen=True)
class Loaded:
    """What came of loading a conversation."""

    messages: int
    skipped: int  # lines of the transcript that were no message
    from_state: bool
    refused: tuple[str, ...]  # why the state was not taken, if there was one
    read: int  # tokens that the stream has read


class Talk:
    """A session whose messages are written down as they come; :meth:`save` adds the KV state."""

    def __init__(self, source: Source, chosen: Setting):
        self.source = source
        self.folder = _fresh()
        self.session = Session(source.engine, source.voice, chosen, self._keep)

    def change(self, name: str, budget: int) -> int:
        """Go on under another policy, which reads the text anew; return the tokens it read."""
        return self.session.read_again(self.source.setting(name, budget))

    def new(self) -> None:
        """Start afresh, in a folder of its own."""
        self.session.start([], self.session.setting)
        self.folder = _fresh()

    def save(self, folder: Path | None) -> Path:
        """Write the KV state beside the transcript; in another folder both, where the conversation then goes on."""
        if not self.session.messages:
            raise UserError("nothing to save yet: say something first")
        if folder and folder.resolve() != self.folder.resolve():
            transcript.write(folder, self.session.messages)
            self.folder = folder
        point = self.session.point
        own = saved.owner(self.source.sha256, self.session.setting, self.session.messages[: point.messages])
        saved.write(self.folder, own, point)
        return self.folder

    def load(self, folder: Path, chosen: Setting | None = None) -> Loaded:
        """Go on with a saved conversation, under ``chosen`` or else the policy that it was saved under.

        A state that is damaged or of something else is refused, and the text is read anew. Raises UserError if there
        is no transcript, or if the policy cannot take all of it.
        """
        if folder.name == transcript.NAME:
            folder = folder.parent
        messages, skipped = transcript.read(folder)
        refused: list[str] = []
        chosen = chosen or self._saved_setting(folder, refused)
        point = None
        try:
            if not refused:
                point = saved.read(folder, self.source.sha256, self.source.model.shape, chosen, messages)
        except UserError as error:
            refused += error.problems
        before = self.session.messages
        try:
            taken = self._start(messages, chosen, point, refused)
        finally:
            if self.session.messages is not before:  # though reading may have been broken off
                self.folder = folder
        return Loaded(len(messages), skipped, taken, tuple(refused), self.session.point.seen)

    def close(self) -> None:
        """Free the cache."""
        self.session.close()

    def _start(self, messages: list[Message], chosen: Setting, point: Point | None, refused: list[str]) -> bool:
        if point:
            try:
                self.session.start(messages, chosen, point)
                return True
            except (RuntimeError, ValueError) as error:
                refused.append(f"the state does not fit this model: {error}")
        self.session.start(messages, chosen)
        return False

    def _saved_setting(self, folder: Path, refused: list[str]) -> Setting:
        """Return the setting that a state was saved under; the present one where none is, or where it is gone."""
        found = saved.setting_of(folder)
        if found is None:
            return self.session.setting
        try:
            return self.source.setting(found[0], found[1] or 0)
        except UserError as error:
            refused += error.problems
            return self.session.setting

    def _keep(self, message: Message) -> None:
        transcript.append(self.folder, message)


def home() -> Path:
    """Return the folder for what outlives a run: the user's state folder, as XDG names it."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "peakchat"


def _fresh() -> Path:
    """Return the folder of a conversation that begins now; it is made when something is said."""
    return home() / "conversations" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 1000:03d}"
