"""The Hugging Face hub: files of one commit, retries, and failures as one line that says how to go on without it."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.errors import UserError, nearest

log = logging.getLogger(__name__)

WAITS_S = (1, 2, 4)  # before the second, third and last attempt
TIMEOUT_S = 10
RETRIED_STATUS = (408, 429)

Result = TypeVar("Result")


@contextmanager
def reported(what: str, offline: str) -> Iterator[None]:
    """Turn a failed download of ``what`` into a UserError that names the choice to use ``offline`` instead.

    A full or read-only disk is not the hub's failure and passes through.
    """
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (httpx.HTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        reason = " ".join(str(cause or error).split())[:200]
        raise UserError(f"{what}: cannot be had from the hub ({reason}); without the hub use {offline}") from error


def retried(fetch: Callable[[], Result]) -> Result:
    """Return ``fetch()``, tried again after a pause while the hub answers busy or the connection breaks."""
    import httpx

    for wait in WAITS_S:
        try:
            return fetch()
        except (httpx.HTTPError, OSError) as error:
            if not _transient(error):
                raise
            log.warning("hub: %s; trying again in %d s", " ".join(str(error).split())[:120], wait)
            time.sleep(wait)
    return fetch()


def dataset_files(repo: str, revision: str, names: Sequence[str], offline: str) -> tuple[str, list[Path]]:
    """Return the commit that ``revision`` names and the local paths of files of a dataset at that commit.

    Files come through the hub's cache, so that a second call fetches nothing; with HF_HUB_OFFLINE=1 they must be there
    and ``revision`` must be the commit.
    Raises UserError if the hub cannot be reached, or with a line for every file that the dataset lacks.
    """
    from huggingface_hub import hf_hub_download

    with reported(f"{repo}@{revision}", offline):
        commit = _commit(repo, revision, names)
        paths = [
            Path(retried(lambda name=name: hf_hub_download(repo, name, repo_type="dataset", revision=commit)))
            for name in names
        ]
    return _snapshot(paths[0], names[0]), paths


def _commit(repo: str, revision: str, names: Sequence[str]) -> str:
    """Return the commit of ``revision`` after a check that it has all the files; offline, ``revision`` itself."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return revision
    info = retried(lambda: HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_S))
    held = [sibling.rfilename for sibling in info.siblings]
    if missing := [name for name in names if name not in held]:
        raise UserError(*(f"{repo}@{info.sha}: no file '{name}'{nearest(name, held)}" for name in missing))
    return info.sha


def _snapshot(path: Path, name: str) -> str:
    """Return the commit that a path in the hub's cache (.../snapshots/<commit>/<name>) belongs to."""
    return path.parents[len(PurePosixPath(name).parts) - 1].name


def _transient(error: Exception) -> bool:
    import httpx

    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code >= 500 or response.status_code in RETRIED_STATUS
    incomplete = type(error) is OSError and error.errno is None  # fewer bytes came than were announced
    return incomplete or isinstance(error, httpx.TransportError)
