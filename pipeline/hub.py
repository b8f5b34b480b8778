"""The Hugging Face hub: its failures as one clear line that says how to go on without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError


@contextmanager
def reported(what: str, offline: str) -> Iterator[None]:
    """Turn a failed download of ``what`` into a UserError that names the choice to use ``offline`` instead."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: cannot be had from the hub ({reason}); without the hub use {offline}") from error
