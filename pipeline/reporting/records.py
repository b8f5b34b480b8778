"""What the report needs of the stages' JSON, as frozen values; keys it does not need are ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pipeline.reporting.answered import PolicyAnswers, Sample
from pipeline.reporting.measured import Measure, Measured, Record

FULL = "full"  # the KV policy that all others are measured beside
SEEN, UNSEEN = "seen", "unseen"  # whether a question was read before the cache was cut


class Tokens(Record):
    """Tokens of a split's dialogues: sum, median and largest."""

    total: int
    p50: int
    p100: int


class Split(Record):
    """One split of the dialogues."""

    dialogues: int
    turns: int
    multi_turn_share: float
    tokens: Tokens


class ChatSummary(Record):
    """data/chat/summary.json: what came of every raw line."""

    source: dict[str, Any]
    lines: int
    kept: int
    dropped: dict[str, int]
    splits: dict[str, Split]
    overlap: dict[str, int]
    test_questions_in_train: int


class TrainSummary(Record):
    """eval/train/summary.json: what a training run did."""

    steps: int
    epochs: float
    stopped_early: bool
    best_step: int | None
    tokens_trained: int
    trainable_parameters: int
    eval_loss: dict[str, Measured]


class MergeDifference(Record):
    """How far a merged model is from its adapter."""

    max_logit_diff: Measured
    kld: Measured


class Merge(Record):
    """eval/merge.json: what the merge changed, before and after rounding to its dtype."""

    dtype: str
    in_memory: MergeDifference
    reloaded: MergeDifference


class Scorer(Record):
    """The model behind BERT-F1."""

    name: str
    layer: int


class Metrics(Record):
    """How good a model's answers and predictions are; divergence is from the merged model on the same token ids."""

    bert_f1: Measured
    bert_f1_shuffled: Measured
    perplexity: Measured
    bits_per_char: Measured
    kld: Measured
    same_top: Measured
    ended: Measured


class PerDialogue(Record):
    """Scores of single test dialogues, for paired comparison."""

    ids: list[str]
    bert_f1: list[float]


class Quality(Record):
    """eval/quality/<cell>.json: how well one model answers the test set."""

    cell: str
    engine: str
    scorer: Scorer
    size_bytes: Measured
    metrics: Metrics
    per_dialogue: PerDialogue
    samples: list[Sample]


class File(Record):
    """One file of an artifact."""

    name: str
    bytes: int
    sha256: str


class Parity(Record):
    """Token ids compared between Hugging Face and an export."""

    dialogues: int
    mismatches: Measured


class Logits(Record):
    """An export's logits on a fixed dialogue beside those of the merged model."""

    max_diff: Measured
    argmax_agreement: Measured


class Quantized(Record):
    """eval/quantize/<encoding>.json: one export and its verification."""

    encoding: str
    family: str
    summary: str
    base: str
    parameters: int
    files: list[File]
    bits_per_weight: Measured
    tensor_types: dict[str, int]
    fallbacks: list[dict[str, Any]]
    parity: Parity
    logits: Logits


class Machine(Record):
    """Where a benchmark ran."""

    cpu: str
    cores: int
    threads: int
    llama_cpp_python: str
    flags: str

    @property
    def words(self) -> str:
        """The CPU and the threads used."""
        return f"{self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Timing(Record):
    """Speed of one benchmark row."""

    flash_attention: str
    ttft_s: Measured
    tpot_ms_median: Measured
    tpot_ms_p95: Measured
    tokens_per_second: Measured
    ratio_to_full: Measured
    summary: dict[str, Measured] | None = None  # seconds that summaries took, and their share of all


class Kept(Record):
    """What a policy keeps of the model's quality, beside full KV on the same token ids."""

    perplexity: Measured
    kld: Measured
    same_top: Measured
    top1: Measured | None = None


class DialogueRecall(Record):
    """Answers to questions about what was told early in conversations."""

    exact_match: Measured
    bert_f1: Measured
    kv_bytes_mean: Measured


class BenchRow(Record):
    """One policy at one depth and budget; recall by kind of task and by whether the question was seen at the cut."""

    policy: str
    composition: str
    depth: int
    budget: int | None = None
    entries: Measured
    kv_bytes_peak: Measured
    kv_bytes_final: Measured
    host_bytes: Measured = Measure(value=0)
    quality: Kept
    timing: Timing
    summary: dict[str, Measured] | None = None  # what summaries took and gave, a document
    conversation: dict[str, Measured] | None = None  # the same, of one long conversation
    recall: dict[str, dict[str, Measured]] = Field(default_factory=dict)
    dialogue_recall: DialogueRecall | None = None
    kept: list[list[float]] = Field(default_factory=list)  # layer by stretch of the prompt: the share that is kept

    @property
    def name(self) -> str:
        """The policy with its budget, where it has one."""
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"

    @property
    def recall_seen(self) -> float | None:
        """The share of right answers where the question was read before the cut, kinds counting alike."""
        return _mean([sights[SEEN].value for sights in self.recall.values() if SEEN in sights])

    @property
    def recall_unseen(self) -> float | None:
        """The same where it came after the cut; None where nothing is cut at the prompt's end."""
        return _mean([sights[UNSEEN].value for sights in self.recall.values() if UNSEEN in sights])


class LosslessRow(Record):
    """One policy that drafts while full KV verifies; ``timing`` has the speed beside full KV alone."""

    policy: str
    budget: int | None = None
    depth: int
    draft_tokens: int
    acceptance: Measured
    tokens_per_call: Measured
    identical: bool  # to full KV that scores in blocks of one size
    identical_single: bool  # to full KV fed one by one
    shortfall: Measured
    timing: dict[str, Measured]


class Bench(Record):
    """eval/bench/<encoding>.json: one model under every KV-cache policy."""

    encoding: str
    machine: Machine
    settings: dict[str, Any]
    rows: Annotated[list[BenchRow], Field(min_length=1)]
    lossless: list[LosslessRow] = Field(default_factory=list)
    answers: list[PolicyAnswers] = Field(default_factory=list)  # to evaluate's samples, full KV first


def _mean(shares: list[float]) -> float | None:
    return sum(shares) / len(shares) if shares else None


class SpeedRow(Record):
    """One policy in one figure of the speed benchmark."""

    figure: str
    encoding: str
    policy: str
    depth: int
    flash_attention: str
    tpot_ms_median: Measured | None = None
    ratio_to_full: Measured | None = None
    kv_bytes: Measured | None = None


class Bound(Record):
    """What a figure was expected to be at most, or at least where that is better."""

    what: str
    value: Measured
    bound: float
    holds: bool


class Speed(Record):
    """eval/bench/speed.json: speed alone, on a model of a real one's shape with random weights."""

    model: dict[str, str]
    machine: Machine
    rows: list[SpeedRow]
    bounds: list[Bound]


class StageTiming(Record):
    """eval/timings/<stage>.json."""

    seconds: float
    peak_rss_bytes: int
    tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
