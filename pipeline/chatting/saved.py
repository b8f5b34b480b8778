"""A session's KV state on the disk: safetensors, with a header that tells what it belongs to and a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import io
from pipeline.chatting.session import Point
from pipeline.chatting.setting import Setting
from pipeline.engines.llama import library
from pipeline.engines.snapshot import Snapshot
from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape
from pipeline.prompts import Message

NAME = "state.safetensors"
FORMAT = 2
KEY = "peakchat"


@dataclass(frozen=True)
class Owner:
    """What a state belongs to: it means nothing under anything else."""

    format: int
    llama_cpp_python: str
    model: str  # SHA-256 of the GGUF file
    policy: str
    budget: int | None
    recipe: str  # JSON, the slack included
    read: str  # SHA-256 of the messages that the stream had read


def owner(model: str, chosen: Setting, messages: Sequence[Message]) -> Owner:
    """Return what the state of a stream that has read ``messages`` belongs to; ``model`` is the file's SHA-256."""
    recipe = chosen.recipe.model_dump(mode="json", exclude={"paper", "published"}) | {"slack": chosen.policy.slack}
    return Owner(
        FORMAT, library.PINNED, model, chosen.name, chosen.budget, _json(recipe), _digest(_json(list(messages)))
    )


def write(folder: Path, own: Owner, point: Point) -> None:
    """Write the state, atomically."""
    from safetensors.numpy import save_file

    from pipeline.chatting import tree

    arrays: dict[str, np.ndarray] = {}
    header = {"owner": asdict(own), "messages": point.messages, "checkpoint": tree.flat(point.checkpoint, arrays)}
    text = _json(header)
    with io.atomic_file(folder / NAME) as partial:
        save_file(arrays, partial, {KEY: text, "checksum": _checksum(text, arrays)})


def setting_of(folder: Path) -> tuple[str, int | None] | None:
    """Return the policy and the budget of a saved state; None if there is no readable one."""
    try:
        header = _header(folder / NAME, _metadata(folder / NAME))
        return (str(header["owner"]["policy"]), header["owner"]["budget"])
    except (OSError, UserError, KeyError, TypeError):
        return None


def read(folder: Path, model: str, shape: CacheShape, chosen: Setting, messages: Sequence[Message]) -> Point | None:
    """Return the state of a conversation; None if there is none.

    Raises UserError, naming what is wrong or differs, for a state that is damaged or of something else.
    """
    path = folder / NAME
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from pipeline.chatting import tree

    metadata = _metadata(path)
    header = _header(path, metadata)
    try:
        arrays = load_file(path)
        if _checksum(metadata[KEY], arrays) != metadata.get("checksum"):
            raise UserError(f"{path}: the state is damaged: its bytes are not those that its checksum was made of")
        found, count = Owner(**header["owner"]), int(header["messages"])
        if differing := list(_differences(found, owner(model, chosen, messages[:count]))):
            raise UserError(f"{path}: the state belongs to something else: {'; '.join(differing)}")
        checkpoint = tree.built(header["checkpoint"], arrays)
        if not _fits(checkpoint.snapshot, shape):
            raise UserError(f"{path}: the state does not fit this model: another number of layers, heads or entries")
        return Point(count, checkpoint)
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: the state is damaged: {error}") from None


def _fits(snapshot: Snapshot, shape: CacheShape) -> bool:
    """Tell whether every layer has an origin and a position for each of its entries."""
    entries = [(shape.kv_heads, live) for live in snapshot.lives]
    places = (snapshot.origins, snapshot.positions)
    return len(entries) == shape.layers and all([tuple(one.shape) for one in parts] == entries for parts in places)


def _differences(found: Owner, expected: Owner) -> Iterator[str]:
    for name, ours in asdict(expected).items():
        theirs = getattr(found, name)
        if theirs != ours:
            yield {"read": "the transcript's messages were changed since", "recipe": "the policy's recipe changed"}.get(
                name, f"{name} {theirs} there, {ours} here"
            )


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the header of a state; raise UserError if it has none of ours."""
    try:
        return json.loads(metadata[KEY])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the state is damaged: no header of a saved conversation ({error})") from None


def _metadata(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: the state is damaged: {error}") from None


def _checksum(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
