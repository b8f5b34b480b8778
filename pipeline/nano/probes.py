"""What the base model is asked when it is measured: bits a character, perplexity and recall under masks, sink mass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.metrics.measure import measure
from pipeline.nano.model import CausalLM
from pipeline.runtime import cpu_has_bf16
from pipeline.tasks import recall
from pipeline.tasks.recall import RecallTask

Z95 = recall.Z95
SINKS = 4
SINK_ROWS_FROM = 32
Mask = Tensor | None


def window(length: int, sinks: int, budget: int) -> Tensor:
    """Return the [length, length] mask of a cache of ``budget`` entries: the first ``sinks`` and the newest."""
    row, column = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return (column <= row) & ((column < sinks) | (column > row - (budget - sinks)))


def kept_after_prefill(length: int, question: int, span: tuple[int, int], sinks: int, budget: int) -> Tensor:
    """Return the mask of a full prefill after which question and answer see sinks, one fact's line and the newest.

    ``question`` is where the question begins, ``span`` the fact's positions from and up to; the question itself comes
    on top of the budget.
    """
    row, column = torch.arange(length)[:, None], torch.arange(length)[None, :]
    newest = column >= question - (budget - sinks - (span[1] - span[0]))
    kept = (column < sinks) | newest | ((column >= span[0]) & (column < span[1]))
    return (column <= row) & ((row < question) | kept)


@torch.no_grad()
def losses(model: CausalLM, ids: Sequence[int], mask: Mask = None) -> Tensor:
    """Return the loss in nats of every token but the first, [length - 1]."""
    x = torch.tensor([list(ids)])
    hidden, _ = model.hidden(x, torch.arange(x.shape[1])[None], None if mask is None else mask[None, None])
    return F.cross_entropy(model.logits(hidden)[0, :-1].float(), x[0, 1:], reduction="none")


def bits_per_character(model: CausalLM, documents: Sequence[tuple[Sequence[int], int]]) -> dict:
    """Measure bits a character over single documents, each (ids with a first token, characters)."""
    bits = torch.tensor([losses(model, ids).sum().item() / math.log(2) for ids, _ in documents])
    characters = torch.tensor([float(count) for _, count in documents])
    value = (bits.sum() / characters.sum()).item()
    error = ((bits - value * characters).std() * len(bits) ** 0.5 / characters.sum()).item()
    return measure(
        value,
        stderr=error,
        ci95=(value - Z95 * error, value + Z95 * error),
        n=len(bits),
        unit="bits/character",
        better="lower",
    )


def perplexity_ratio(
    model: CausalLM, rows: Sequence[Sequence[int]], mask: Tensor, full: Sequence[Tensor], skip: int
) -> dict:
    """Measure perplexity under ``mask`` over that under full attention, whose losses are ``full``, past ``skip``."""
    gaps = torch.stack(
        [(losses(model, row, mask)[skip:] - all_seen[skip:]).mean() for row, all_seen in zip(rows, full, strict=True)]
    )
    mean, error = gaps.mean().item(), gaps.std().item() / len(gaps) ** 0.5
    bounds = (math.exp(mean - Z95 * error), math.exp(mean + Z95 * error))
    return measure(math.exp(mean), stderr=math.exp(mean) * error, ci95=bounds, n=len(rows), unit="ratio")


@torch.no_grad()
def answer(model: CausalLM, task: RecallTask, mask: Mask = None) -> list[int]:
    """Return the greedy choice at every answer position, given the right answer so far.

    All are right exactly if greedy decoding gives the right answer.
    """
    ids = [*task.prompt_ids, *task.answer_ids[:-1]]
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
        hidden, _ = model.hidden(
            torch.tensor([ids]), torch.arange(len(ids))[None], None if mask is None else mask[None, None]
        )
        last = model.logits(hidden[0, len(task.prompt_ids) - 1 :])
    return last.argmax(-1).tolist()


def recalled(model: CausalLM, tasks: Sequence[RecallTask], mask_of: Callable[[RecallTask, int], Mask]) -> dict:
    """Measure recall where ``mask_of`` gives the mask of a task and its number of positions."""
    answers = [answer(model, task, mask_of(task, len(task.prompt_ids) + len(task.answer_ids) - 1)) for task in tasks]
    return recall.score(tasks, answers)


@torch.no_grad()
def sink_mass(model: CausalLM, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean attention mass on the first token, [layers, heads], over later rows of all prompts."""
    masses = []
    for ids in prompts:
        x, rows = torch.tensor([list(ids)]), torch.arange(SINK_ROWS_FROM, len(ids))
        first = torch.zeros(1, len(rows), 1, dtype=torch.long)
        _, watched = model.hidden(x, torch.arange(len(ids))[None], watch=(rows, first))
        masses.append(watched[:, 0, :, :, 0].exp().mean(-1))
    return torch.stack(masses).mean(0)


@torch.no_grad()
def divergence(reference: CausalLM, model: CausalLM, rows: Sequence[Sequence[int]]) -> dict:
    """Measure the mean KL divergence in nats a token of ``model`` from ``reference`` over full-context rows."""
    means = []
    for row in rows:
        x = torch.tensor([list(row)])
        positions = torch.arange(len(row))[None]
        p, q = (F.log_softmax(m.logits(m.hidden(x, positions)[0]).float(), -1) for m in (reference, model))
        means.append((p.exp() * (p - q)).sum(-1).mean())
    values = torch.stack(means)
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    return measure(
        mean,
        stderr=error,
        ci95=(mean - Z95 * error, mean + Z95 * error),
        n=values.numel(),
        unit="nats/token",
        better="lower",
    )
