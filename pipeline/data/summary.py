"""data/chat/summary.json: what came of every line of every file, and what the splits hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from pipeline.data.corpus import Corpus
from pipeline.data.records import Reason
from pipeline.data.split import Splits

COPIES = (Reason.DUPLICATE, Reason.NEAR_DUPLICATE, Reason.IN_TEST, Reason.NEAR_TEST)
LISTED = 20  # line numbers of malformed lines named for each file
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


@dataclass
class Ledger:
    """The account of one raw file: every line is either kept or dropped for one reason."""

    path: str
    split: str
    lines: int = 0
    shapes: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    malformed: list[int] = field(default_factory=list)

    def drop(self, reason: Reason, line: int | None = None) -> None:
        """Count a dropped line; remember the number of a malformed one."""
        self.dropped[reason] += 1
        if reason is Reason.MALFORMED and len(self.malformed) < LISTED:
            self.malformed.append(line)

    def reasons(self) -> dict[str, int]:
        """Return the dropped lines by reason, in the order of the checks."""
        return {reason.value: self.dropped[reason] for reason in Reason if self.dropped[reason]}

    def usable(self) -> bool:
        """Return whether the file held a dialogue, be it a copy of another one."""
        copies = sum(self.dropped[reason] for reason in COPIES)
        return self.lines - sum(self.dropped.values()) + copies > 0

    def as_json(self, kept: int) -> dict:
        """Return the account as summary.json states it."""
        return {
            "path": self.path,
            "split": self.split,
            "shapes": dict(sorted(self.shapes.items())),
            "lines": self.lines,
            "kept": kept,
            "dropped": self.reasons(),
            "malformed_lines": self.malformed,
        }


def build(source: dict, ledgers: Sequence[Ledger], corpus: Corpus, splits: Splits) -> dict:
    """Return the whole of summary.json; ``source`` is data/raw/source.json."""
    kept = Counter(corpus.files[index] for split in splits.values() for index in split)
    dropped = sum((ledger.dropped for ledger in ledgers), Counter())
    return {
        "source": {key: value for key, value in source.items() if key != "files"},
        "lines": sum(ledger.lines for ledger in ledgers),
        "kept": sum(kept.values()),
        "dropped": {reason.value: dropped[reason] for reason in Reason},
        "splits": {name: _figures(corpus, indices) for name, indices in splits.items()},
        "overlap": {f"{a}_{b}": _common(corpus.keys, splits[a], splits[b]) for a, b in combinations(splits, 2)},
        "test_questions_in_train": _common(corpus.questions, splits["test"], splits["train"]),
        "control_tokens_defused": sum(corpus.defused[index] for split in splits.values() for index in split),
        "files": [ledger.as_json(kept[number]) for number, ledger in enumerate(ledgers)],
    }


def _figures(corpus: Corpus, indices: Sequence[int]) -> dict:
    """Return sizes of a split: dialogues, assistant turns, share with several of them, tokens of a dialogue."""
    answers = _taken(corpus.answers, indices)
    tokens = _taken(corpus.tokens, indices)
    return {
        "dialogues": len(indices),
        "turns": int(answers.sum()),
        "multi_turn_share": round(float((answers > 1).mean()), 4),
        "tokens": {
            "total": int(tokens.sum()),
            **{f"p{p}": int(np.percentile(tokens, p, method="higher")) for p in PERCENTILES},
        },
    }


def _common(values: Iterable[int], a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many dialogues of split ``a`` share their value with one of split ``b``."""
    return int(np.isin(_taken(values, a), _taken(values, b)).sum())


def _taken(values: Iterable[int], indices: Sequence[int]) -> np.ndarray:
    return np.asarray(values)[np.asarray(indices, dtype=np.int64)]
