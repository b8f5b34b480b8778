"""Seeds and thread counts: the one place that sets them, before any numeric library is loaded."""

from __future__ import annotations

import ctypes
import io
import os
import platform
import random
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path

from pipeline.config import Runtime

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # Intel's and AMD's two, Arm's one

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


def quiet() -> AbstractContextManager:
    """Keep the bars and chatter of libraries off a stderr that is no terminal; our own log and errors still show.

    For bars that are switched on in so many words, compressed-tensors' for one, which TQDM_DISABLE does not reach.
    """
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; one that has to imitate it is fifty times slower.

    False where the system does not tell.
    """
    if not CPUINFO.is_file():
        return False
    with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def has_bf16() -> bool:
    """Return whether what torch computes on, the GPU if it sees one, multiplies bfloat16 itself."""
    import torch

    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_has_bf16()


def seed_torch(runtime: Runtime) -> None:
    """Seed torch and bind its thread pool; for stages that use torch, after :func:`configure`."""
    import torch

    torch.manual_seed(runtime.seed)
    torch.set_num_threads(runtime.threads)
