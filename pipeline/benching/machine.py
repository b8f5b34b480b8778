"""The machine that a benchmark runs on, as its record tells it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pipeline.engines.llama import library


def describe(threads: int) -> dict:
    """Return what the benchmark ran on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "llama_cpp_python": library.PINNED,
        "flags": library.system_info(),
    }


def cpu_name() -> str:
    """Return the CPU's own name, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
