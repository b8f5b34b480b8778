"""What fine-tuning gains, read off the artifacts of a `make` on the embedded default."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.io import read_json, read_jsonl
from pipeline.metrics.measure import measure
from pipeline.nano import export, probes
from pipeline.nano.corpus import spoken
from pipeline.nano.model import CausalLM

if TYPE_CHECKING:
    from pipeline.nano.evaluate import Check, Subject

log = logging.getLogger(__name__)

MERGED = Path("artifacts/merged")
TEST = Path("data/chat/test.jsonl")
QUALITY = Path("eval/quality")
DIALOGUES = 200


def checks(subject: Subject) -> Iterator[Check]:
    """Answer loss in plain form, endings and BERT-F1 of the merged model beside the base, on unseen dialogues."""
    from pipeline.nano.evaluate import Check

    results = [QUALITY / f"{cell}.json" for cell in ("base", "merged")]
    if missing := [path for path in (MERGED, TEST, *results) if not path.exists()]:
        names = ", ".join(map(str, missing))
        log.warning("%s: not there; run `make` and then `evaluate` again for the rows on fine-tuning", names)
        return
    examples = [plain(subject, record["messages"]) for record in islice(read_jsonl(TEST), DIALOGUES)]
    gains = answer_losses(subject.model, examples) - answer_losses(export.load(MERGED), examples)
    yield Check("answer loss of the base less that after SFT, plain form", mean_of(gains, "nats/token"), low=0.15)
    base, merged = map(read_json, results)
    yield Check("answers that end, after SFT", merged["metrics"]["ended"], low=0.70)
    pairs = zip(merged["per_dialogue"]["bert_f1"], base["per_dialogue"]["bert_f1"], strict=True)
    gain = mean_of(torch.tensor([after - before for after, before in pairs]), "BERT-F1")
    yield Check(
        "BERT-F1 after SFT less that of the base, lower end of the 95 % interval",
        {
            **gain,
            "value": gain["ci95"][0],
        },
        low=0.0,
    )


def mean_of(values: torch.Tensor, unit: str) -> dict:
    """Measure the mean of paired differences."""
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    interval = (mean - probes.Z95 * error, mean + probes.Z95 * error)
    return measure(mean, stderr=error, ci95=interval, n=len(values), unit=unit, better="higher")


def plain(subject: Subject, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Return the ids of the dialogue in plain form before the last answer, and of that answer."""
    turns = [(m["role"], m["content"]) for m in messages if m["role"] != "system"]
    text, answer = spoken([*turns[:-1], ("assistant", "")]), turns[-1][1]
    return subject.ids(text), subject.tokenizer(answer, add_special_tokens=False)["input_ids"]


def answer_losses(model: CausalLM, examples: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the mean loss of each answer in nats a token."""
    losses = [probes.losses(model, [*prompt, *answer])[len(prompt) - 1 :] for prompt, answer in examples]
    return torch.stack([loss.mean() for loss in losses])
