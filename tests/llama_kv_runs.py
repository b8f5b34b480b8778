"""Runs of KV policies on either engine: logits after every token, and which entries lived then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import Tensor

from pipeline import prompts
from pipeline.engines.cache import KvEngine
from pipeline.engines.llama.kv import Flash
from pipeline.engines.opening import opened
from pipeline.engines.prompt import prefilled
from pipeline.engines.stream import room
from pipeline.kv import recipe
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision

from .conftest import tiny_tokenizer

LAYERS = 4
VOCABULARY = 500  # without control tokens
PROMPT, MORE = 100, 40
BUDGETS = (40, 48, 64)  # the first that suits a recipe is taken
SLACK = 5
F32 = Precision("f32", "f32")
EXACT = Flash(prefill=False, decode=False)  # flash attention rounds more


@cache
def words():
    """Return the models' tokenizer with the pipeline's chat format."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = prompts.template()
    return tokenizer


def random_ids(count: int, seed: int = 2) -> list[int]:
    """Return random tokens, no two alike: in the first layer the keys of equal tokens are equally long."""
    return np.random.default_rng(seed).permutation(VOCABULARY)[:count].tolist()


def small(name: str, **changes) -> Policy:
    """Return a recipe's policy at the smallest budget that suits it, with its own slack where that is small."""
    source = recipe.read(name)
    budget = next(budget for budget in BUDGETS if not source.budgeted or not list(source.problems(budget, LAYERS)))
    policy = source.policy(budget, SLACK, LAYERS)
    policy = replace(policy, summary=policy.summary and replace(policy.summary, after=budget))
    return replace(policy, slack=policy.slack if policy.slack < MORE // 2 else SLACK, **changes)


def ample(name: str, length: int) -> Policy:
    """Return a recipe's policy at the least of some budgets that leaves a text of ``length`` whole in every layer."""
    source = recipe.read(name)
    for budget in (length, 40 * length):
        policy = source.policy(budget, 0, LAYERS)
        if not policy.decode or all(limit is None or limit >= length for limit in policy.decode.limits(budget, LAYERS)):
            return policy
    raise AssertionError(name)


@dataclass
class Run:
    """What a policy did to a text: logits after every token since the prompt, and what lived then."""

    logits: np.ndarray  # float32 [tokens, vocabulary]
    origins: list[list[Tensor]]  # a token and layer: int64 [kv_heads, n]


def run(engine: KvEngine, policy: Policy, ids: list[int], prompt: int = PROMPT) -> Run:
    """Bring a prompt in as the policy wants it, and feed the other tokens one by one."""
    cache = engine.cache(room(engine, policy, prompt, len(ids)))
    try:
        stream = opened(engine, cache, policy, words())
        if policy.online:
            logits = [stream.feed(ids[:prompt])]
        else:
            read = prefilled(engine, ids[:prompt], policy)
            stream.take(read)
            logits = [read.logits[None]]
        origins = [stream.origins()]
        for token in ids[prompt:]:
            logits.append(stream.feed([token]))
            origins.append(stream.origins())
        return Run(np.concatenate(logits), origins)
    finally:
        cache.close()


def same(found: Run, expected: Run) -> np.ndarray:
    """Return for each token whether the same entries have lived up to it, in every layer and KV head."""
    pairs = zip(found.origins, expected.origins, strict=True)
    alike = [all(a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairs]
    return np.logical_and.accumulate(alike)


def shared(found: Run, expected: Run) -> float:
    """Return the share of living entries that both runs have, over all tokens, layers and KV heads."""
    hits = total = 0
    for ours, theirs in zip(found.origins, expected.origins, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            hits += sum(len(set(x) & set(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True))
            total += b.numel()
    return hits / max(total, 1)
