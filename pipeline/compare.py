"""compare: two revisions or DVC experiments side by side on one page, read from what Git holds of each."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipeline import config, io, revisions, schema
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting import comparison, page
from pipeline.reporting.load import EVAL, load_revision

log = logging.getLogger(__name__)

MADE = ("artifacts", "data", "eval")  # folders that stages write, where a page of ours would be taken for a result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the two revisions and where the page goes."""
    known = f"a commit, branch, tag or DVC experiment, or `{revisions.WORKSPACE}` for the files as they are"
    parser.add_argument("before", metavar="REV1", help=known)
    parser.add_argument("after", metavar="REV2", help=known)
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="page to write (default: %(default)s)")


def main(options: argparse.Namespace) -> int:
    """Write a page of what differs between two revisions: params, headline numbers, encodings, KV policies."""
    if options.out.parts[:1] and options.out.parts[0] in MADE:
        raise UserError(f"--out {options.out}: stages write {options.out.parts[0]}/; name a file elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides([options.before, options.after], Path(folder))
    io.write_text(options.out, page.html(comparison.context(*sides), "compare.html.j2"))
    log.info("compare: %s; open it in a browser", options.out)
    return 0


def _sides(names: list[str], folder: Path) -> list[comparison.Side]:
    """Read both revisions; raise UserError with the problems of both."""
    sides, problems = [], []
    for index, name in enumerate(names):
        try:
            sides.append(_side(name, folder / str(index)))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return sides


def _side(name: str, folder: Path) -> comparison.Side:
    root = Path()
    if name != revisions.WORKSPACE:
        revisions.extract(name, [str(EVAL), str(config.PARAMS)], folder)
        root = folder
    if not (root / EVAL).is_dir() or not (root / config.PARAMS).is_file():
        raise UserError(f"{name}: holds no results (eval/ and params.yaml); check it out, `dvc repro`, commit")
    raw = _params(root)
    try:
        params = schema.parse(_fitted(raw, _params(Path())), Params, config.PARAMS)
        results = load_revision(params, root)
    except UserError as error:
        raise type(error)(*(f"{name}: {problem}" for problem in error.problems)) from None
    return comparison.Side(name, raw, results)


def _params(root: Path) -> Any:
    return yaml.safe_load((root / config.PARAMS).read_text(encoding="utf-8"))


def _fitted(raw: Any, here: Any) -> Any:
    """Return params in the shape of today's, so that results of an earlier pipeline can be read.

    What was not yet a parameter takes today's value, what is none any more is left out; the page shows ``raw``.
    """
    if not isinstance(raw, dict) or not isinstance(here, dict):
        return raw
    return {key: _fitted(raw[key], value) if key in raw else value for key, value in here.items()}
