"""Wall time of one action."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def timed(action: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return what an action returns, and its seconds on the wall."""
    started = time.perf_counter()
    found = action(*arguments)
    return found, time.perf_counter() - started
