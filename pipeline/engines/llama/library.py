"""The llama.cpp library: its pinned version, models from GGUF files, and text to token ids and back."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape

log = logging.getLogger(__name__)

PACKAGE = "llama-cpp-python"
PINNED = "0.3.36"
LOG_ERROR = 4  # ggml's number; 5 continues a line, the rest is chatter


def check_version() -> None:
    """Raise UserError unless the pinned release is installed: the engine mirrors its C structures."""
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UserError(f"{PACKAGE}: not installed, {PINNED} is needed; run `make env`") from None
    if installed != PINNED:
        raise UserError(f"{PACKAGE}: {installed} is installed, {PINNED} is needed; run `make env`")


@cache
def api() -> ModuleType:
    """Return llama.cpp's C API, with its version checked, its log down to errors and its backend started."""
    check_version()
    import llama_cpp

    llama_cpp.llama_log_set(_log_callback(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _log_callback() -> Any:
    """Return the C callback that hands llama.cpp's errors to our log; the cache keeps it alive."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def forward(level: int, text: bytes, _: Any) -> None:
        if level == LOG_ERROR:
            log.error("llama.cpp: %s", text.decode(errors="replace").strip())

    return forward


def load_model(path: str | Path, *, vocab_only: bool = False, extra_buffers: bool | None = None) -> Any:
    """Load a GGUF file; ``vocab_only`` leaves the weights out, which is instant and enough for ids and metadata.

    ``extra_buffers`` is llama.cpp's repacking of weights for this CPU's instructions; None asks the start-up check.
    Free the model with :func:`free_model`. Raises UserError if the file is missing or llama.cpp refuses it.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; make the model first (`dvc repro quantize`)")
    settings = api().llama_model_default_params()
    settings.n_gpu_layers = 0
    settings.vocab_only = vocab_only
    settings.use_extra_bufts = _extra_buffers(vocab_only) if extra_buffers is None else extra_buffers
    model = api().llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise UserError(f"{path}: llama.cpp cannot load it (its reason is above); make the file again")
    return model


def _extra_buffers(vocab_only: bool) -> bool:
    from pipeline.engines.llama import selfcheck

    return vocab_only or selfcheck.extra_buffers_work()


def free_model(model: Any) -> None:
    """Free a model and its weights."""
    api().llama_model_free(model)


@contextmanager
def loaded(path: str | Path, *, vocab_only: bool = False) -> Iterator[Any]:
    """Yield a model as :func:`load_model` gives it, and free it in the end."""
    model = load_model(path, vocab_only=vocab_only)
    try:
        yield model
    finally:
        free_model(model)


def vocabulary_size(model: Any) -> int:
    """Return how many token ids the model has, padding included."""
    return api().llama_vocab_n_tokens(api().llama_model_get_vocab(model))


def tokenize(model: Any, text: str, *, parse_special: bool = True) -> list[int]:
    """Return the token ids of ``text``, without a start token; ``parse_special`` reads control tokens as such."""
    data = text.encode()
    vocab = api().llama_model_get_vocab(model)
    ids = (ctypes.c_int32 * (len(data) + 1))()  # a token is a byte at least
    count = api().llama_tokenize(vocab, data, len(data), ids, len(ids), False, parse_special)
    if count < 0:
        raise RuntimeError(f"llama_tokenize asks for {-count} ids for {len(data)} bytes")
    return list(ids[:count])


def token_bytes(model: Any, token: int) -> bytes:
    """Return the bytes that a token stands for; none for control tokens. A character may span several tokens."""
    vocab = api().llama_model_get_vocab(model)
    piece = ctypes.create_string_buffer(64)
    size = api().llama_token_to_piece(vocab, token, piece, len(piece), 0, False)
    if size < 0:  # longer than most
        piece = ctypes.create_string_buffer(-size)
        size = api().llama_token_to_piece(vocab, token, piece, len(piece), 0, False)
    return piece.raw[:size]


def header(model: Any, key: str) -> str | None:
    """Return one value of the GGUF header as text, or None if the file lacks the key."""
    buffer = ctypes.create_string_buffer(256)
    length = api().llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return None if length < 0 else buffer.value.decode(errors="replace")


def cache_shape(model: Any) -> CacheShape:
    """Return what one entry of the model's KV cache consists of, from the GGUF header."""
    heads = number(model, "attention.head_count")
    width = number(model, "embedding_length") // heads
    return CacheShape(
        layers=number(model, "block_count"),
        kv_heads=number(model, "attention.head_count_kv", heads),
        key_length=number(model, "attention.key_length", width),
        value_length=number(model, "attention.value_length", width),
    )


def context_length(model: Any) -> int:
    """Return the tokens of the longest context that the model was trained for, from the GGUF header."""
    return number(model, "context_length")


def number(model: Any, key: str, default: int | None = None) -> int:
    """Return one number of the GGUF header, by its key without the architecture's name in front."""
    value = header(model, f"{header(model, 'general.architecture')}.{key}")
    return default if value is None else int(value)


def system_info() -> str:
    """Return what instructions this build of llama.cpp uses, in its own words."""
    return " ".join(api().llama_print_system_info().decode().split())
