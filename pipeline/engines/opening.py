"""The stream that a policy asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines.cache import Cache, KvEngine
from pipeline.engines.rereading import RereadStream
from pipeline.engines.stream import Stream
from pipeline.engines.summary.stream import SummaryStream
from pipeline.engines.summary.writer import Extractive, ModelWriter, Writer
from pipeline.errors import UserError
from pipeline.kv.policy import Policy, Summary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def opened(engine: KvEngine, cache: Cache, policy: Policy, words: PreTrainedTokenizerBase | None = None) -> Stream:
    """Return an empty stream under a policy; raise UserError if it summarises and ``words``, the tokenizer, is missing.

    The summary's writer shares the engine's weights and nothing else.
    """
    if policy.reprefill:
        return RereadStream(engine, cache, policy)
    if not policy.summary:
        return Stream(engine, cache, policy)
    if words is None:
        raise UserError("a policy with a summary needs the model's tokenizer; take a policy without one here")
    return SummaryStream(engine, cache, policy, _writer(engine, policy.summary, words), Extractive(words))


def _writer(engine: KvEngine, summary: Summary, words: PreTrainedTokenizerBase) -> Writer | None:
    if not summary.tokens or summary.mode == "none":
        return None
    if summary.mode == "extractive":
        return Extractive(words)
    return ModelWriter(engine, words, summary.precision, summary.reads)
