"""Questions answered under all policies by as many processes as there are threads to compute on.

Nothing of an answer is timed, and what a policy does between two blocks of tokens is work for one core: each process
computes on one thread, with the model loaded for itself, and takes its share of the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import prompts, runtime
from pipeline.benching import conversing, recalling
from pipeline.config import Runtime
from pipeline.engines.cache import KvEngine
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.kv.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.benching.plan import Plan

Ask = Callable[[KvEngine, Sequence[Policy], Any, "PreTrainedTokenizerBase"], list]
"""Takes an engine, policies, tasks about one context and the model's tokenizer; returns each policy's answers."""


@dataclass(frozen=True)
class Setting:
    """What every process needs; paths are absolute, since a process may start in another folder."""

    gguf: Path
    tokenizer: Path
    policies: tuple[Policy, ...]
    runtime: Runtime


def questions(planned: Plan) -> list[tuple[Ask, Any]]:
    """Return the tasks about each context, facts before conversations, with who asks them."""
    facts = [(recalling.asked, tasks) for contexts in planned.recall.values() for tasks in contexts]
    return facts + [(conversing.asked, tasks) for tasks in planned.dialogues]


def answers(setting: Setting, questions: Sequence[tuple[Ask, Any]], bar: tqdm) -> list[list]:
    """Return for all tasks about a context, with who asks them, the answers of all policies."""
    count = min(setting.runtime.threads, len(questions))
    found: list[list] = [[]] * len(questions)
    if not questions:
        return found
    shares = [questions[first::count] for first in range(count)]
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:  # a fork would inherit the threads of OpenMP
        for first, given in enumerate(pool.map(partial(_share, setting), shares)):
            found[first::count] = given
            bar.update(len(given) * len(setting.policies))
    return found


def _share(setting: Setting, questions: Sequence[tuple[Ask, Any]]) -> list[list]:
    """Answer one process's share."""
    alone = setting.runtime.model_copy(update={"threads": 1})
    runtime.configure(alone)
    runtime.seed_torch(alone)
    words = prompts.load_tokenizer(setting.tokenizer)
    with LlamaKvEngine(setting.gguf, alone.threads) as engine:
        return [ask(engine, setting.policies, tasks, words) for ask, tasks in questions]
