"""Errors that the user can mend, and the nearest-name hints they carry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One or more problems that the user can mend.

    Each problem is one line: the file, key or line at fault, its value, what was expected and what to do next.
    A stage prints the lines without a traceback and exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


class ConfigError(UserError):
    """Problems in params.yaml or in a recipe."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint ``; did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
