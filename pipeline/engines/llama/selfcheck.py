"""Start-up check: does this build of llama.cpp survive decoding quantised weights on this CPU?

Some compilers drop part of the AMX tile configuration, and the first quantised product then kills the process.
A child process finds out with a tiny model, once for each build and CPU; the answer is kept in ``.cache/``.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import subprocess
import sys
import tempfile
from functools import cache
from importlib import util
from pathlib import Path

from pipeline import io
from pipeline.engines.llama import library

log = logging.getLogger(__name__)

CACHE = Path(".cache/llama-cpp.json")
ENCODINGS = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}  # llama.cpp's ftype numbers
CHECK = ["-m", "pipeline.engines.llama.selfcheck"]
TIMEOUT_S = 120
WIDTH = 256  # one K-quant super-block
TOKENS = 64


@cache
def extra_buffers_work() -> bool:
    """Return whether quantised weights decode with extra buffers on; warn, once a process, if they do not."""
    build = _build()
    known = io.read_json(CACHE) if CACHE.is_file() else {}
    if build not in known:
        known = {build: _child_survives()}
        io.write_json(CACHE, known)
    if not known[build]:
        log.warning(
            "llama.cpp: this build crashes on quantised weights with this CPU's fastest instructions, so they stay "
            "off: decoding is up to 1.6 times slower; `make env` builds it with the compiler flags that help"
        )
    return known[build]


def _build() -> str:
    """Name the installed build and the CPU it runs on."""
    package = Path(util.find_spec("llama_cpp").origin).parent
    cpu = Path("/proc/cpuinfo")
    flags = next((x for x in cpu.read_text().splitlines() if x.startswith("flags")), "") if cpu.is_file() else ""
    libraries = [io.sha256(file) for file in sorted((package / "lib").glob("*ggml-cpu*")) if not file.is_symlink()]
    return hashlib.sha256("\n".join([library.PINNED, platform.machine(), flags, *libraries]).encode()).hexdigest()


def _child_survives() -> bool:
    root = Path(__file__).parents[3]
    try:
        child = subprocess.run([sys.executable, *CHECK], cwd=root, capture_output=True, timeout=TIMEOUT_S, check=False)
        return child.returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _write_tiny(path: Path) -> None:
    """Write a one-layer llama model of random f16 weights, without a tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(WIDTH)
    writer.add_context_length(2 * TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    random = np.random.default_rng(0)
    products = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    for name in ["token_embd", "output", *(f"blk.0.{product}" for product in products)]:
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.05, (WIDTH, WIDTH)).astype(np.float16))
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Quantise a tiny model and decode a prompt and one more token with each encoding; die if this build does."""
    import ctypes

    from pipeline.engines.llama.context import Context

    llama = library.api()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "F16.gguf"
        _write_tiny(source)
        for name, ftype in ENCODINGS.items():
            settings = llama.llama_model_quantize_default_params()
            settings.ftype = ftype
            target = source.with_name(f"{name}.gguf")
            if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
                raise RuntimeError(f"llama.cpp cannot quantise the tiny model to {name}")
            with Context(library.load_model(target, extra_buffers=True), n_ctx=2 * TOKENS, threads=1) as context:
                context.decode(range(TOKENS), range(TOKENS))
                context.decode([0], [TOKENS])


if __name__ == "__main__":
    main()
