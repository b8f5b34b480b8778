"""Revisions of this repository: branches, tags, commits and DVC experiments, read without touching the workspace."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from pipeline.errors import UserError, nearest

WORKSPACE = "workspace"  # DVC's word for the files as they lie here
EXPERIMENTS = "refs/exps"
EXPERIMENT_PARTS = 5  # refs/exps/<2 digits of the baseline>/<the other 38>/<name>; others are DVC's own


def resolve(name: str) -> str:
    """Return the commit that a name stands for: what Git knows, or a DVC experiment's name.

    Raises UserError with the nearest name known here.
    """
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False)
    if commit := found.decode().strip():
        return commit
    commits = {commit for known, commit in experiments() if known == name}
    if len(commits) > 1:
        raise UserError(
            f"{name}: {len(commits)} experiments bear this name; give the commit of one (`dvc exp list -A`)"
        )
    if not commits:
        known = [WORKSPACE, *_names(), *(known for known, _ in experiments())]
        raise UserError(
            f"{name}: neither a revision that Git knows nor a DVC experiment{nearest(name, known)} "
            f"(`git log --oneline` and `dvc exp list -A` list them; `{WORKSPACE}` is the files as they are)"
        )
    return commits.pop()


def experiments() -> list[tuple[str, str]]:
    """Return the (name, commit) of every DVC experiment kept here."""
    lines = _git("for-each-ref", "--format=%(refname) %(objectname)", EXPERIMENTS).decode().splitlines()
    refs = [line.rsplit(" ", 1) for line in lines]
    return [(ref.split("/")[-1], commit) for ref, commit in refs if len(ref.split("/")) == EXPERIMENT_PARTS]


def _names() -> list[str]:
    return _git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").decode().split()


def extract(name: str, paths: list[str], folder: Path) -> None:
    """Write the files of a revision that lie at or below ``paths`` into ``folder``; paths it lacks are left out."""
    commit = resolve(name)
    held = [path for path in paths if _git("ls-tree", "--name-only", commit, "--", path)]
    if held:
        packed = _git("archive", "--format=tar", commit, "--", *held)
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(folder, filter="data")


def _git(*arguments: str, check: bool = True) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("git: not found; revisions can only be read with it") from None
    if check and done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}; run this in the checkout")
    return done.stdout
