"""Which dialogues go to train, validation and test: by a hash of the dialogue and the seed, whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.config import Convert
from pipeline.errors import UserError

Splits = dict[str, list[int]]


def assign(keys: Sequence[int], test: Sequence[int], train: Sequence[int], convert: Convert, seed: int) -> Splits:
    """Return the indices of every split, out of the usable dialogues of the test files and of the training files.

    Test: the first ``convert.test`` of the test files, in file order; where there are none, as many training dialogues
    of the smallest hashes. Validation: the training dialogues of the next smallest hashes, in that order, so that any
    first part of either is a fair sample. Train: the rest, in file order. Raises UserError if nothing would be left to
    train on.
    """
    held_out = {"test": 0 if test else convert.test, "validation": convert.validation}
    if len(train) <= sum(held_out.values()):
        raise UserError(_too_few(len(train), held_out))
    ranked = sorted(train, key=lambda index: _rank(keys[index], seed))
    cut = held_out["test"]
    splits = {"test": list(test[: convert.test]) or ranked[:cut], "validation": ranked[cut : cut + convert.validation]}
    taken = {index for split in splits.values() for index in split}
    return {"train": [index for index in train if index not in taken], **splits}


def _rank(key: int, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{key:016x}".encode(), digest_size=16).digest()


def _too_few(count: int, held_out: dict[str, int]) -> str:
    wanted = " and ".join(f"convert.{name} ({number})" for name, number in held_out.items() if number)
    smaller = " ".join(f"-S convert.{name}={max(1, count // 10)}" for name, number in held_out.items() if number)
    return (
        f"data/raw: {count} usable training dialogues, but {wanted} would leave none to train on; "
        f"give more data or hold out fewer, for example {smaller}"
    )
