"""Exact and near duplicates: normal forms and keys of dialogues, MinHash bands, verified Jaccard similarity.

A dialogue is compared by its letters and digits alone. Near duplicates are found by MinHash (Broder, 1997) with
locality-sensitive bands (Indyk and Motwani, 1998); every candidate is then compared exactly, so a dialogue is dropped
only if its similarity to one that is kept truly lies above the threshold.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from tqdm import tqdm

from pipeline.prompts import Message

SHINGLE = 5  # characters
PERMUTATIONS = 128
RECALL = 0.995  # of pairs exactly at the threshold; more similar pairs are found more surely
MAX_COMPARED = 64  # likeliest candidates compared with one dialogue; bounds the time on text made from templates
CACHED_SHINGLES = 1 << 14

_NOT_WORD = re.compile(r"[\W_]+")
_RANDOM = np.random.default_rng(20240229)
_WINDOW = _RANDOM.integers(1 << 63, size=SHINGLE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SCALE = _RANDOM.integers(1 << 31, size=PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_SHIFT = _RANDOM.integers(1 << 32, size=PERMUTATIONS, dtype=np.uint32)
_MIX = _RANDOM.integers(1 << 63, size=PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def normal_form(messages: Sequence[Message]) -> str:
    """Return the letters and digits of a dialogue after NFKC, one line a message."""
    return "\n".join(_NOT_WORD.sub("", unicodedata.normalize("NFKC", message["content"])) for message in messages)


def key_of(text: str) -> int:
    """Return a 64-bit key of a text: equal texts, equal keys, on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def shingles(text: str) -> np.ndarray:
    """Return the sorted 64-bit hashes of the distinct runs of five characters in a text, uint64 (n,)."""
    codes = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset, factor in enumerate(_WINDOW):
        hashes += codes[offset : offset + count] * factor
    return np.unique(hashes)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of common elements of two sorted sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def rows_per_band(threshold: float) -> int:
    """Return the most MinHash values a band can have and still find RECALL of the pairs at ``threshold``."""

    def recall(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)

    return max((rows for rows in range(2, 33) if recall(rows) >= RECALL), default=1)


def bands(text: str, rows: int) -> np.ndarray:
    """Return the band keys of a text, uint64 (PERMUTATIONS // rows,); similar texts share some of them."""
    halves = (shingles(text) >> np.uint64(32)).astype(np.uint32)
    minima = (halves[:, None] * _SCALE + _SHIFT).min(axis=0)  # 128 permutations of the 32-bit numbers, modulo 2**32
    used = PERMUTATIONS // rows * rows
    return (minima[:used] * _MIX[:used]).reshape(-1, rows).sum(axis=1, dtype=np.uint64)


def near_duplicates(keys: np.ndarray, text: Callable[[int], str], threshold: float, fixed: int) -> dict[int, int]:
    """Return {dropped: kept} where each dropped dialogue is more similar than ``threshold`` to an earlier kept one.

    ``keys`` are the band keys, uint64 (dialogues, bands); ``text(i)`` is the normal form of dialogue ``i``. The first
    ``fixed`` dialogues are never dropped, only compared with.
    """
    shared = _shared(keys)
    cached = lru_cache(CACHED_SHINGLES)(lambda index: shingles(text(index)))
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    dropped: dict[int, int] = {}
    suspects = np.flatnonzero(shared.any(axis=1)).tolist()
    for index in tqdm(suspects, desc="near duplicates", unit=" dialogues", disable=None):
        mine = [(int(band), int(keys[index, band])) for band in np.flatnonzero(shared[index])]
        if index >= fixed:
            candidates = Counter(other for key in mine for other in buckets.get(key, ()))
            match = _first_similar(cached, index, candidates, threshold)
            if match is not None:
                dropped[index] = match
                continue
        for key in mine:
            if index < fixed or len(buckets[key]) < MAX_COMPARED:
                buckets[key].append(index)
    return dropped


def _first_similar(cached: Callable, index: int, candidates: Counter, threshold: float) -> int | None:
    for other, _ in candidates.most_common(MAX_COMPARED):
        small, large = sorted((len(cached(index)), len(cached(other))))
        if small > threshold * large and jaccard(cached(index), cached(other)) > threshold:
            return other
    return None


def _shared(keys: np.ndarray) -> np.ndarray:
    """Return where a band key occurs more than once in its band, bool (dialogues, bands)."""
    shared = np.zeros(keys.shape, dtype=bool)
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[inverse] > 1
    return shared
