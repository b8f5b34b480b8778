"""Seeds and thread counts: the one place that sets them, before any numeric library is loaded."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys

from pipeline.config import Runtime

# Turns an OpenMP thread waits awake. By default they are so many that threads stall one another on a busy machine;
# none at all costs small models nearly half their speed on a quiet one.
SPINS = "2000"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's numbers, malloc.h


def configure(runtime: Runtime) -> None:
    """Set the environment that every stage runs in: threads of all numeric libraries, seed, quiet libraries.

    Call it before torch, transformers or llama_cpp are imported: OpenMP reads its thread count once.
    """
    threads = str(runtime.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads)
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # for the bars of libraries; read when tqdm is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    random.seed(runtime.seed)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks; it returns each to the system and pays for every page of the next one."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def seed_torch(runtime: Runtime) -> None:
    """Seed torch and bind its thread pool; for stages that use torch, after :func:`configure`."""
    import torch

    torch.manual_seed(runtime.seed)
    torch.set_num_threads(runtime.threads)
