"""data/chat/*.jsonl to training rows of token ids, in which the answers alone carry loss."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import io, prompts
from pipeline.config import Train
from pipeline.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NO_LOSS = -100  # torch's ignore index
NO_EXAMPLE = "no example to learn from: no answer fits into train.max_length = {} with any of its prompt; raise it"

Row = dict[str, list[int]]


def examples(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, counts: Counter) -> Iterator[Row]:
    """Yield one example an assistant turn: ``input_ids`` of prompt and answer, ``labels`` of the answer alone.

    A prompt that leaves too little room loses its oldest tokens. An example whose answer leaves no room for a prompt
    is dropped, for a model that learned a cut answer would learn not to stop. ``counts`` gathers what was done.
    """
    from tqdm import tqdm

    for record in tqdm(io.read_jsonl(path), desc=f"tokenise {path.stem}", unit=" dialogues", disable=None):
        counts["dialogues"] += 1
        for turn in prompts.turns(record["messages"]):
            prompt, answer = prompts.example_ids(tokenizer, turn)
            if len(answer) >= max_length:
                counts["dropped"] += 1
                continue
            room = max_length - len(answer)
            counts.update(examples=1, cut=len(prompt) > room, tokens=min(len(prompt), room) + len(answer))
            counts["answer_tokens"] += len(answer)
            prompt = prompt[-room:]
            yield {"input_ids": prompt + answer, "labels": [NO_LOSS] * len(prompt) + answer}


def read(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path) -> tuple[Dataset, Counter]:
    """Return the examples of a file, memory-mapped from the folder ``cache``, and their counts."""
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    counts = Counter(dialogues=0, examples=0, cut=0, dropped=0, tokens=0, answer_tokens=0)
    ids = List(Value("int32"))
    file = cache / f"{path.stem}.arrow"
    with ArrowWriter(path=str(file), features=Features({"input_ids": ids, "labels": ids})) as writer:
        for example in examples(path, tokenizer, max_length, counts):
            writer.write(example)
        writer.finalize()
    return Dataset.from_file(str(file)), counts


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Put several examples into a row of at most ``max_length`` tokens, best fit decreasing; none is cut."""
    from trl import pack_dataset

    return pack_dataset(dataset, max_length, strategy="bfd")


def rows(
    files: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase, train: Train, cache: Path
) -> tuple[dict[str, Dataset], dict[str, Counter]]:
    """Return the rows of each split and what they were made from; raise UserError for a split that has none.

    The rows are kept in the folder ``cache``, which is emptied first.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()  # the bar of `examples` shows the same work
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    splits, counts = {}, {}
    for split, path in files.items():
        splits[split], counts[split] = read(path, tokenizer, train.max_length, cache)
    empty = [path for split, path in files.items() if not counts[split]["examples"]]
    if empty:
        raise UserError(*(f"{path}: {NO_EXAMPLE.format(train.max_length)}" for path in empty))
    if train.packing:
        splits = {split: pack(data, train.max_length) for split, data in splits.items()}
    for split, count in counts.items():
        count["rows"] = len(splits[split])
        log.info("train: %s: %s", split, ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in count.items()))
    return splits, counts


def collator(pad_token_id: int) -> Callable[[list[Row]], dict]:
    """Return a collator of rows into tensors of shape (rows, longest row) whose examples do not see one another.

    Positions restart at 0 with each example, and no attention mask is passed: transformers then builds the
    block-causal mask from the positions. TRL's own padding-free mode joins the rows into one long sequence instead,
    whose attention without a varlen kernel costs the square of that length.
    """
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, return_position_ids=True)

    def isolated(rows: list[Row]) -> dict:
        batch = collate(rows)
        del batch["attention_mask"]
        return batch

    return isolated
