"""Runs one stage: strict params in, user errors as plain lines and an exit code, timings recorded apart."""

from __future__ import annotations

import argparse
import errno
import inspect
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import config, io, runtime
from pipeline.errors import UserError

TIMINGS = Path("eval/timings")


def run(main: Callable, argv: list[str] | None = None) -> None:
    """Run a stage's ``main(params)`` or ``main(params, cell)`` as a command and exit with its code.

    Exit codes: 0 done, 1 a problem with inputs or results, 2 a problem in params.yaml or a recipe.
    """
    stage = Path(inspect.getfile(main)).stem
    parser = argparse.ArgumentParser(prog=f"python -m pipeline.{stage}", description=inspect.getmodule(main).__doc__)
    cells = list(inspect.signature(main).parameters)[1:]
    for cell in cells:
        parser.add_argument(cell)
    args = parser.parse_args(argv)
    start_logging()
    cell = [getattr(args, name) for name in cells]
    sys.exit(report_errors(lambda: _run(main, cell)))


def _run(main: Callable, cell: list[str]) -> None:
    params = config.load()
    runtime.configure(params.runtime)
    main(params, *cell)


@contextmanager
def timed(name: str) -> Iterator[dict]:
    """Record wall seconds and peak resident bytes of a block in ``eval/timings/<name>.json``.

    Timings stand apart from deterministic values. The dict that is yielded takes further timings, such as tokens/s.
    """
    extra: dict = {}
    started = time.perf_counter()
    yield extra
    seconds = round(time.perf_counter() - started, 2)
    io.write_json(TIMINGS / f"{name}.json", {"seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), **extra})


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process or of one of its finished children."""
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage) * 1024  # Linux counts in KiB


def report_errors(action: Callable[[], None]) -> int:
    """Run ``action``; print a user's errors as one line each and return the exit code."""
    try:
        action()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {_disk_full(error)}", file=sys.stderr)
        return 1
    return 0


def _disk_full(error: OSError) -> str:
    return (
        f"{error.filename or 'output'}: no space left on the disk; nothing was half-written: free some space "
        "(`dvc gc --workspace` drops the artifacts of earlier runs) and run again"
    )


def start_logging() -> None:
    """Log one plain line an event to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "fsspec", "absl", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
