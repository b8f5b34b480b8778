"""convert: turn data/raw into clean, deduplicated dialogues: data/chat/{train,validation,test}.jsonl and summary.json.

Only numbers about the dialogues are held in memory; their text waits on the disk until the splits are known.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline import io, prompts, stage
from pipeline.config import Params
from pipeline.data import dedup, split, summary
from pipeline.data.collect import Collector
from pipeline.data.corpus import Corpus
from pipeline.data.records import Reason
from pipeline.data.split import Splits
from pipeline.data.summary import Ledger
from pipeline.errors import UserError

log = logging.getLogger(__name__)

RAW = Path("data/raw")
BASE = Path("artifacts/base")
CHAT = Path("data/chat")


def main(params: Params) -> None:
    """Read data/raw and the base model's tokenizer; write data/chat."""
    source = read_source()
    tokenizer = prompts.load_tokenizer(BASE)
    with stage.timed("convert") as timings, io.atomic_dir(CHAT) as partial:
        spool = partial / "dialogues.spool"
        with Corpus(spool, params.convert.near_duplicate) as corpus:
            ledgers = collect(source["files"], Collector(corpus, tokenizer, params.convert.max_tokens))
            usable = drop_near_duplicates(corpus, ledgers, params.convert.near_duplicate)
            splits = divide(corpus, ledgers, usable, params)
            for name, indices in splits.items():
                write_lines(partial / f"{name}.jsonl", corpus, indices)
        spool.unlink()
        report = summary.build(source, ledgers, corpus, splits)
        io.write_json(partial / "summary.json", report)
        timings.update(lines=report["lines"])
    log_outcome(report)


def read_source() -> dict:
    """Return data/raw/source.json; raise UserError if download has not run."""
    path = RAW / "source.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; run `dvc repro download` first")
    return io.read_json(path)


def collect(files: Sequence[dict], collector: Collector) -> list[Ledger]:
    """Read all raw files, test files first; return their ledgers.

    Raises UserError naming every file without one usable dialogue, with its dropped lines by reason.
    """
    ordered = sorted(files, key=lambda file: file["split"] != "test")
    ledgers = [Ledger(file["path"], file["split"]) for file in ordered]
    for number, ledger in enumerate(ledgers):
        collector.read(RAW / ledger.path, ledger, number)
    if problems := [_unusable(ledger) for ledger in ledgers if not ledger.usable()]:
        raise UserError(*problems)
    return ledgers


def drop_near_duplicates(corpus: Corpus, ledgers: Sequence[Ledger], threshold: float) -> list[int]:
    """Return the indices of the dialogues that are kept: all of the test files, and no near copies for training."""
    tests = sum(ledgers[file].split == "test" for file in corpus.files)
    if threshold == 1:
        return list(range(len(corpus)))
    dropped = dedup.near_duplicates(corpus.bands(), corpus.text, threshold, fixed=tests)
    for index, match in dropped.items():
        ledgers[corpus.files[index]].drop(Reason.NEAR_TEST if match < tests else Reason.NEAR_DUPLICATE)
    return [index for index in range(len(corpus)) if index not in dropped]


def divide(corpus: Corpus, ledgers: Sequence[Ledger], usable: Sequence[int], params: Params) -> Splits:
    """Assign the usable dialogues to splits; test dialogues beyond ``convert.test`` are counted as dropped."""
    test = [index for index in usable if ledgers[corpus.files[index]].split == "test"]
    train = usable[len(test) :]
    for index in test[params.convert.test :]:
        ledgers[corpus.files[index]].drop(Reason.BEYOND_TEST)
    return split.assign(corpus.keys, test, train, params.convert, params.runtime.seed)


def write_lines(path: Path, corpus: Corpus, indices: Sequence[int]) -> None:
    """Write the dialogues as JSON Lines."""
    with path.open("wb") as out:
        out.writelines(corpus.line(index) for index in indices)


def log_outcome(report: dict) -> None:
    """Log what was kept, what was dropped and why."""
    for file in report["files"]:
        shapes = ", ".join(f"{count} {shape}" for shape, count in file["shapes"].items())
        log.info("convert: %s: %d lines (%s), %d kept", file["path"], file["lines"], shapes, file["kept"])
    dropped = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items() if count) or "none"
    log.info("convert: dropped: %s", dropped)
    sizes = ", ".join(f"{figures['dialogues']} {name}" for name, figures in report["splits"].items())
    log.info("convert: %s", sizes)


def _unusable(ledger: Ledger) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in ledger.reasons().items())
    return (
        f"{RAW / ledger.path}: no usable dialogue in {ledger.lines} lines ({reasons}); "
        "expected JSON Lines records with instruction and output, conversations, or messages"
    )


if __name__ == "__main__":
    stage.run(main)
