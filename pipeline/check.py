"""check: find everything wrong with params, recipes, environment and inputs in about a second, before any work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from pipeline import config, models
from pipeline.config import Params
from pipeline.errors import UserError

LOCK = Path("requirements.lock")
FREE_BYTES = 2_000_000_000  # artifacts and cache of the embedded default take a tenth of it


def main() -> None:
    """Print one line for each thing that was checked; raise UserError with all problems found."""
    params = config.load()
    problems: list[str] = []
    for name, check in CHECKS.items():
        found = list(_problems(check, params))
        print(f"{name}: {'ok' if not found else f'{len(found)} to mend'}")
        problems += found
    if problems:
        raise UserError(*problems)


def _problems(check: Callable[[Params], Iterator[str]], params: Params) -> Iterator[str]:
    try:
        yield from check(params)
    except UserError as error:
        yield from error.problems


def recipes_of(params: Params) -> Iterator[str]:
    """Read every recipe that params.yaml names, and the published tables, which the report shows whatever they are."""
    from pipeline.kv import recipe as policy
    from pipeline.metrics import bert_f1
    from pipeline.quant import recipe
    from pipeline.reporting import references

    bench = params.bench
    readers = [
        (models.read, [params.model]),
        (recipe.read, params.quantize.encodings),
        (bert_f1.read, [params.evaluate.scorer]),
        (policy.read, dict.fromkeys((*bench.policies, *bench.lossless.policies, *bench.answers.policies))),
        (references.read, references.names()),
    ]
    for read, names in readers:
        for name in names:
            try:
                read(name)
            except UserError as error:
                yield from error.problems


def environment(params: Params) -> Iterator[str]:
    """Compare the installed packages with the pins."""
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.]+)", LOCK.read_text(), flags=re.MULTILINE):
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            yield f"{name}: not installed, {LOCK} pins {pinned}; run `make env`"
            continue
        if installed != pinned:
            yield f"{name}: {installed} is installed, {LOCK} pins {pinned}; run `make env`"


def inputs(params: Params) -> Iterator[str]:
    """Look at the data files and the base model that the first stages will read."""
    files = {
        "embedded": [Path("data/embedded/dialogues") / f"{split}.jsonl" for split in ("train", "test")],
        "path": [Path(file) for file in (*params.data.path, *params.data.test_path)],
        "hub": [],
    }[params.data.source]
    for file in files:
        if not file.is_file() or not file.stat().st_size:
            yield f"{file}: missing or empty; data.source '{params.data.source}' reads it"
    base = models.read(params.model)
    if base.source == "local":
        models.check(Path(base.path), origin=base.path)


def disk(params: Params) -> Iterator[str]:
    """Look for room for the artifacts."""
    free = shutil.disk_usage(".").free
    if free < FREE_BYTES:
        yield f"disk: {free / 1e9:.1f} GB free here, {FREE_BYTES / 1e9:.0f} GB wanted; free some space"


CHECKS: dict[str, Callable[[Params], Iterator[str]]] = {
    "recipes": recipes_of,
    "environment": environment,
    "inputs": inputs,
    "disk": disk,
}
