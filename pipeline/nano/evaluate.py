"""data/embedded/base + held-out text -> data/embedded/base/bounds.json: what the shipped base must meet, measured.

Text, names, values and phrasings are those kept out of training. Policies are masks over the full model in torch; the
quantised weights are the pipeline's own GGUF files, dequantised. The rows on fine-tuning need artifacts/ of a `make`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from pipeline import prompts
from pipeline.io import sha256, size_bytes, write_json
from pipeline.metrics.measure import measure
from pipeline.nano import corpus, export, finetuned, probes, quantised
from pipeline.nano.model import CausalLM
from pipeline.nano.tokenizer import END_OF_TEXT
from pipeline.tasks import recall

log = logging.getLogger(__name__)

SEED = 7
TASKS = {512: 96, 1024: 96, 2048: 96}
FEW = 24  # tasks where there is no bound
DEPTHS = {512: 0.97, 1024: 0.97, 2048: 0.90}  # least recall with everything kept
UNTRAINED_DEPTHS = (3072,)
EVICTED = {1024: 96, 2048: 32}  # depth, tasks
BUDGET = 256
TEXT_LENGTH = 2048
TEXT_ROWS = 16
DIVERGENCE_LENGTH, DIVERGENCE_ROWS = 512, 24
CHAT_PROMPTS = 32
DIVERGENCES = {"Q8_0": (0.0, 0.002), "Q4_K_M": (0.005, 0.06), "Q4_0": (0.02, 0.12)}


@dataclass(frozen=True)
class Check:
    """One row of the table: what was measured, where it must lie, and whether it does (None: no bound)."""

    name: str
    measured: dict[str, Any]
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value lies within its bounds."""
        if self.low is None and self.high is None:
            return None
        value = self.measured["value"]
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        return isinstance(value, (int, float)) and low <= value <= high


MaskOf = Callable[[recall.RecallTask, int], probes.Mask]


def _everything(task: recall.RecallTask, length: int) -> None:
    return None


class Subject:
    """The exported base with its tokenizer and the texts it is measured on."""

    def __init__(self, recipe: dict):
        self.folder = Path(recipe["base"])
        self.recipe = recipe
        self.model: CausalLM = export.load(self.folder)
        self.tokenizer = prompts.load_tokenizer(self.folder)
        self.start = self.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self.texts = corpus.load(recipe, "held_out")

    def ids(self, text: str) -> list[int]:
        """Return the ids of a document after the token that opens one."""
        return [self.start, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def rows(self, length: int, most: int) -> list[list[int]]:
        """Return rows of running held-out consultations, each with the token that opens a document."""
        documents = [d["text"] for name in ("internal_medicine", "consultations") for d in self.texts[name]]
        ids = self.ids("\n\n".join(documents))[1:]
        starts = range(0, len(ids) - length + 1, length - 1)
        return [[self.start, *ids[at : at + length - 1]] for at in starts][:most]

    @cache  # noqa: B019  there is one subject, and it lives as long as the measurement
    def recall(self, kind: str, depth: int, n: int, mask_of: MaskOf) -> dict[str, Any]:
        """Measure recall of one kind under the masks that ``mask_of`` gives."""
        return probes.recalled(self.model, recall.tasks(self.tokenizer, kind, depth, n, SEED), mask_of)


def main(recipe: dict) -> None:
    """Measure every row and write the bounds' JSON."""
    subject = Subject(recipe)
    checks = []
    for part in (size, text, recall_full, recall_evicted, perplexity, divergence, sink, finetuned.checks):
        for check in part(subject):
            log.info("%s: %s%s", check.name, check.measured["value"], WORDS[check.holds])
            checks.append(check)
    weights = subject.folder / "model.safetensors"
    write_json(
        subject.folder / "bounds.json",
        {
            "weights_sha256": sha256(weights),
            "parameters": sum(p.numel() for p in subject.model.parameters()),
            "checks": [{**asdict(check), "holds": check.holds} for check in checks],
        },
    )


WORDS = {True: ", holds", False: ", does NOT hold", None: ""}


def size(subject: Subject) -> Iterator[Check]:
    """The size of the weights on disk."""
    megabytes = size_bytes(subject.folder / "model.safetensors") / 1e6
    yield Check("size of the bf16 safetensors", measure(megabytes, unit="MB", better="lower"), high=16.0)


def text(subject: Subject) -> Iterator[Check]:
    """Bits a character on single held-out documents, by source; the bound is on real consultations."""
    for source, documents in subject.texts.items():
        pairs = [(subject.ids(d["text"])[:TEXT_LENGTH], len(d["text"])) for d in documents]
        pairs = [(ids, characters) for ids, characters in pairs if len(ids) < TEXT_LENGTH]
        high = 3.60 if source == "internal_medicine" else None
        yield Check(f"held-out {source}", probes.bits_per_character(subject.model, pairs), high=high)


def recall_full(subject: Subject) -> Iterator[Check]:
    """Recall with everything kept, to the trained length and beyond it."""
    for kind in recall.KINDS:
        for depth in (*DEPTHS, *UNTRAINED_DEPTHS):
            name = f"recall of {kind} at {depth}, full KV" + ("" if depth in DEPTHS else " (untrained length)")
            yield Check(name, subject.recall(kind, depth, TASKS.get(depth, FEW), _everything), low=DEPTHS.get(depth))


def recall_evicted(subject: Subject) -> Iterator[Check]:
    """Recall with 256 entries: the newest, sinks and the newest, and the fact's line with sinks and the newest."""
    for kind, (depth, n) in product(recall.KINDS, EVICTED.items()):
        for name, sinks in (("recent", 0), ("4+252", probes.SINKS)):
            share = subject.recall(kind, depth, n, lambda _, length, s=sinks: probes.window(length, s, BUDGET))
            yield Check(f"recall of {kind} at {depth}, {BUDGET} entries, {name}", share, high=0.15)
        kept, full = (subject.recall(kind, depth, n, mask)["value"] for mask in (_facts_kept, _everything))
        ratio = measure(kept / full if full else 0.0, n=n, unit="ratio", better="higher")
        yield Check(f"recall of {kind} at {depth}, fact and sinks kept, of full", ratio, low=0.95)


def _facts_kept(task: recall.RecallTask, length: int):
    return probes.kept_after_prefill(length, task.question_at, task.fact_span, probes.SINKS, BUDGET)


def perplexity(subject: Subject) -> Iterator[Check]:
    """Perplexity with 256 entries over that with all, on running held-out consultations."""
    rows = subject.rows(TEXT_LENGTH, TEXT_ROWS)
    full = [probes.losses(subject.model, row) for row in rows]
    for name, sinks, low, high in (("recent", 0, 1.3, None), ("4+252", probes.SINKS, None, 1.03)):
        mask = probes.window(TEXT_LENGTH, sinks, BUDGET)
        ratio = probes.perplexity_ratio(subject.model, rows, mask, full, skip=BUDGET)
        yield Check(f"perplexity at {TEXT_LENGTH}, {BUDGET} entries, {name}, over full", ratio, low=low, high=high)


def divergence(subject: Subject) -> Iterator[Check]:
    """KL divergence of quantised weights from the F16 ones, rising strictly."""
    rows = subject.rows(DIVERGENCE_LENGTH, DIVERGENCE_ROWS)
    models = quantised.dequantised(subject.folder, ["F16", *DIVERGENCES])
    reference = next(models)
    before = 0.0
    for (encoding, (low, high)), model in zip(DIVERGENCES.items(), models, strict=True):
        measured = probes.divergence(reference, model, rows)
        yield Check(f"KLD of {encoding} from F16", measured, low=max(low, before), high=high)
        before = measured["value"]


def sink(subject: Subject) -> Iterator[Check]:
    """Attention mass on the first token, by what it is; the bound is on the least of layers 2 to 7 in chat form."""
    questions = [d["messages"] for d in subject.texts["internal_medicine"][:CHAT_PROMPTS]]
    chats = [
        prompts.prompt_ids(subject.tokenizer, m[:-1]) + prompts.answer_ids(subject.tokenizer, m[-1]["content"])
        for m in questions
    ]
    plain = [row[:DIVERGENCE_LENGTH] for row in subject.rows(DIVERGENCE_LENGTH, CHAT_PROMPTS)]
    first = subject.recipe["pretrain"]["sink"]["first_layer"]
    for name, examples, low in (
        ("<|im_start|>, chat form", chats, 0.5),
        (END_OF_TEXT, plain, None),
        ("none, text at once", [row[1:] for row in plain], None),
    ):
        layers = probes.sink_mass(subject.model, examples)[first:].mean(1)
        least = measure(layers.min().item(), n=len(examples), unit="share", better="higher")
        yield Check(f"attention mass on the first token ({name}), least of layers {first} to 7", least, low=low)
