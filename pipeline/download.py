"""download: fetch dialogues (embedded sample, hub or local files) into data/raw/{train,test}/*.jsonl and source.json.

Files are copied as they are, a chunk at a time; source.json says where they came from and their checksums.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline import hub, io, stage
from pipeline.config import Data, Params
from pipeline.errors import UserError

log = logging.getLogger(__name__)

RAW = Path("data/raw")
EMBEDDED = Path("data/embedded/dialogues")
OFFLINE = "-S data.source=embedded, or -S data.source=path with -S 'data.path=[FILE.jsonl]'"
LICENSES = {"tyang816/MedChatZH": "apache-2.0 (dataset page); research use only (authors' README)"}
JSON_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*\{")
HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Origin:
    """Raw files where they are now, and what cards say about them."""

    name: str
    license: str
    train: Sequence[Path]
    test: Sequence[Path] = ()
    repo: str | None = None
    revision: str | None = None  # the commit that was fetched

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield (split, file)."""
        yield from (("train", path) for path in self.train)
        yield from (("test", path) for path in self.test)


def main(params: Params) -> None:
    """Find the files of data.source, check them, and write data/raw."""
    with stage.timed("download"):
        origin = SOURCES[params.data.source](params.data)
        check(origin)
        with io.atomic_dir(RAW) as partial:
            files = [copy(split, path, partial) for split, path in origin.files()]
            source = {"source": params.data.source, "name": origin.name, "license": origin.license}
            source.update(repo=origin.repo, revision=origin.revision, files=files)
            io.write_json(partial / "source.json", source)
    for file in files:
        log.info("download: %s (%.1f MB, %d lines)", RAW / file["path"], file["bytes"] / 1e6, file["lines"])


def _embedded(data: Data) -> Origin:
    return Origin(
        name="PeakChat sample dialogues (synthetic)",
        license="same as this repository",
        train=[EMBEDDED / "train.jsonl"],
        test=[EMBEDDED / "test.jsonl"],
    )


def _path(data: Data) -> Origin:
    stems = ", ".join(Path(path).stem for path in data.path)
    return Origin(
        name=f"local files ({stems})",
        license="as their owner states",
        train=[Path(path) for path in data.path],
        test=[Path(path) for path in data.test_path],
    )


def _hub(data: Data) -> Origin:
    repo = data.hub.repo
    names = [name for name in (data.hub.train, data.hub.test) if name]
    commit, paths = hub.dataset_files(repo, data.hub.revision, names, offline=OFFLINE)
    return Origin(
        name=repo.rsplit("/", 1)[-1],
        license=LICENSES.get(repo, f"see https://huggingface.co/datasets/{repo}"),
        train=paths[:1],
        test=paths[1:],
        repo=repo,
        revision=commit,
    )


SOURCES: dict[str, Callable[[Data], Origin]] = {"embedded": _embedded, "hub": _hub, "path": _path}


def check(origin: Origin) -> None:
    """Raise UserError with a line for every file that is missing, empty or not JSON Lines."""
    if problems := [problem for _, path in origin.files() if (problem := _problem(path))]:
        raise UserError(*problems)


def _problem(path: Path) -> str | None:
    if not path.is_file():
        return f"{path}: no such file; give a JSON Lines file, one dialogue a line"
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        blank = not head.strip() and not any(line.strip() for line in file)
    if blank:
        return f"{path}: empty; give a JSON Lines file, one dialogue a line"
    if JSON_ARRAY.match(head):
        return f"{path}: one JSON array; give JSON Lines instead, one dialogue a line (`jq -c '.[]'` writes them)"
    return None


def copy(split: str, path: Path, directory: Path) -> dict:
    """Copy a raw file below ``directory``; return its entry for source.json."""
    target = _unused(directory / split / f"{path.stem}.jsonl")
    target.parent.mkdir(exist_ok=True)
    size = path.stat().st_size
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None)
    with path.open("rb") as file, target.open("wb") as out, bar:
        while chunk := file.read(io.CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            lines, last = lines + chunk.count(b"\n"), chunk[-1:]
            bar.update(len(chunk))
    lines += last != b"\n"
    name = target.relative_to(directory).as_posix()
    return {"path": name, "split": split, "sha256": digest.hexdigest(), "bytes": size, "lines": lines}


def _unused(path: Path) -> Path:
    """Return ``path``, with a number where an earlier file of another directory has the same name."""
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate


if __name__ == "__main__":
    stage.run(main)
