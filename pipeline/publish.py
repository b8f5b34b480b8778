"""publish: put an artifact and its card with the measured numbers into a folder, ready to upload or to hand on."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from pipeline import config, io
from pipeline.errors import UserError, nearest
from pipeline.reporting.cards import CARD, CARDS, artifacts

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to publish and where to."""
    parser.add_argument("artifact", help="adapter, merged, or one of quantize.encodings")
    parser.add_argument("folder", type=Path, help="a folder that is made; it must not exist yet")


def main(options: argparse.Namespace) -> int:
    """Copy an artifact into a new folder, with the card of artifacts/cards in place of its own.

    Copied, not linked: DVC's artifacts may be links into its cache, where an edit would spoil every revision.
    """
    source, card = _source(options.artifact, artifacts(config.load())), CARDS / options.artifact / CARD
    missing = [path for path in (source, card) if not path.exists()]
    problems = [f"{path}: missing; run `dvc repro cards`" for path in missing]
    if options.folder.exists():
        problems.append(f"{options.folder}: exists already; name a folder that is to be made")
    if problems:
        raise UserError(*problems)
    with io.atomic_dir(options.folder) as out:
        not_its_own = shutil.ignore_patterns(CARD)
        shutil.copytree(source, out, ignore=not_its_own, copy_function=shutil.copyfile, dirs_exist_ok=True)
        shutil.copyfile(card, out / CARD)
    log.info("%s: %s", options.folder, ", ".join(sorted(path.name for path in options.folder.iterdir())))
    return 0


def _source(name: str, folders: dict[str, Path]) -> Path:
    if name not in folders:
        raise UserError(f"no artifact '{name}'{nearest(name, folders)} (known: {', '.join(folders)})")
    return folders[name]
