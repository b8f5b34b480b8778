"""Corpus and tokenizer -> build/nano/pretrain: checkpoints and the loss curve of the base model.

Muon for matrices (Jordan et al., 2024), AdamW for the rest, constant then linearly decaying rates. A sink loss makes
the heads keep part of their attention on the first token, as large models do by themselves and one so small does not:
lambda * mean relu(log mass - log p0) over the heads of the deeper layers and a few sampled rows. A guide loss of the
same form makes a few heads copy from the past early on; without it that took more tokens than there were.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pipeline.io import atomic_dir
from pipeline.nano import corpus, tokenizer
from pipeline.nano.batches import LINKS, Batch, NaturalText, RowWriter
from pipeline.nano.model import CausalLM, ModelConfig
from pipeline.nano.muon import Muon
from pipeline.runtime import cpu_has_bf16

log = logging.getLogger(__name__)

LOG_STEPS = 20


@dataclass
class Progress:
    """What besides weights and optimiser a run needs to go on as if it had not stopped."""

    step: int = 0
    tokens: int = 0
    chat_tokens: int = 0  # of consultations in chat format
    seconds: float = 0.0
    drawn: dict[str, int] = field(default_factory=dict)
    characters_per_token: dict[str, float] = field(default_factory=dict)


class Run:
    """One pretraining run: model, optimisers, rows and progress."""

    def __init__(self, recipe: dict):
        torch.manual_seed(recipe["seed"])
        self.settings = recipe["pretrain"]
        self.folder = Path(recipe["build"]) / "pretrain"
        self.model = CausalLM(ModelConfig(**recipe["model"]))
        self.optimisers = self._optimisers()
        encoder = tokenizer.load(recipe)
        shares = {name: source["share"] for name, source in recipe["corpus"]["sources"].items()}
        self.natural = NaturalText(encoder, corpus.load(recipe, "train"), shares, recipe["seed"])
        self.writer = RowWriter(encoder, self.natural, self.settings, recipe["seed"])
        self.progress = Progress()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        muon, adamw = self.settings["muon"], self.settings["adamw"]
        return [
            Muon(matrices, **muon, dtype=torch.bfloat16 if cpu_has_bf16() else torch.float32),
            torch.optim.AdamW(others, lr=adamw["lr"], betas=tuple(adamw["betas"]), weight_decay=0.0, fused=True),
        ]

    def rate(self) -> float:
        """Return the factor on the learning rates: warm-up, constant, linear decay to the floor."""
        settings, progress = self.settings, self.progress
        warm = min(1.0, (progress.step + 1) / settings["warmup_steps"])
        left = (settings["tokens"] - progress.tokens) / (settings["tokens"] - settings["decay_from"])
        return warm * max(settings["floor"], min(1.0, left))

    def phase(self) -> dict:
        """Return the phase that the run is in."""
        phases = self.settings["phases"]
        return next((phase for phase in phases if self.progress.tokens < phase["until"]), phases[-1])

    def step(self, forward, batch: Batch) -> dict[str, float]:
        """Take one optimiser step and return its losses in nats a token, and the mass on the first token."""
        phase = self.phase()
        rows = watched_rows(batch.links, self.settings["watched_rows"], self.progress.step)
        links = batch.links[:, rows]
        first_and_previous = torch.stack([torch.zeros_like(rows), rows - 1], -1)
        always = first_and_previous.expand(len(links), -1, -1)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            columns = torch.cat([always, links.clamp(min=0)], -1)
            losses, watched = forward(batch.ids, batch.positions, batch.targets, rows, columns)
        weights = batch.weights.flatten()
        loss = (losses * weights).sum() / weights.sum()
        mass = watched[self.settings["sink"]["first_layer"] :, ..., 0].exp().mean(-1)
        guided = guide_loss(self.settings["guide"], watched[..., 1:], links)
        (loss + phase["sink"] * _below(self.settings["sink"]["mass"], mass.log()) + phase["guide"] * guided).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self._update()
        self.progress.step += 1
        self.progress.tokens += batch.ids.numel()
        self.progress.chat_tokens += batch.chat_tokens
        losses = losses.detach()
        return {
            "loss": loss.item(),
            **{kind: _mean(losses, where) for kind, where in batch.kinds.items()},
            "sink": mass.mean().item(),
            "guide": guided.item(),
            "norm": norm.item(),
        }

    def _update(self) -> None:
        rates = (self.settings["muon"]["lr"], self.settings["adamw"]["lr"])
        for optimiser, rate in zip(self.optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * self.rate()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def save(self, name: str) -> None:
        """Write a checkpoint: weights, optimiser states (torch's own format, weights only) and progress."""
        self.progress.drawn = self.natural.drawn
        self.progress.characters_per_token = self.writer.characters_per_token
        with atomic_dir(self.folder / name) as out:
            save_file(self.model.state_dict(), out / "model.safetensors")
            torch.save([optimiser.state_dict() for optimiser in self.optimisers], out / "optimisers.pt")
            (out / "progress.json").write_text(json.dumps(asdict(self.progress), indent=1), encoding="utf-8")

    def resume(self, name: str) -> None:
        """Take up a checkpoint."""
        folder = self.folder / name
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        states = torch.load(folder / "optimisers.pt", weights_only=True)
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)
        self.progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        self.natural.drawn = self.progress.drawn
        self.writer.characters_per_token |= self.progress.characters_per_token  # a kind of document may be new
        log.info("resumed at step %d, %.2fM tokens", self.progress.step, self.progress.tokens / 1e6)


def main(recipe: dict) -> None:
    """Train to the recipe's end; a run that was stopped goes on from its last checkpoint."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    run = Run(recipe)
    run.folder.mkdir(parents=True, exist_ok=True)
    if (run.folder / "last").is_dir():
        run.resume("last")
    forward = torch.compile(run.model, dynamic=False)
    saved, seen, stop = time.monotonic(), [], _stop_on_signal()
    while run.progress.tokens < run.settings["tokens"] and not stop:
        began = time.monotonic()
        batch = run.writer.batch(run.progress.step, run.phase())
        seen.append(run.step(forward, batch))
        run.progress.seconds += time.monotonic() - began
        if run.progress.step % LOG_STEPS == 0:
            _report(run, seen, batch.ids.numel() / (time.monotonic() - began), batch.ids.shape[1])
            seen = []
        if time.monotonic() - saved > 60 * run.settings["checkpoint_minutes"]:
            run.save("last")
            saved = time.monotonic()
    run.save("last")


def _stop_on_signal() -> list[int]:
    """Return a list that SIGTERM or Ctrl-C fills, so that the run ends after its step, with a checkpoint."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received_number, frame: received.append(received_number))
    return received


def _report(run: Run, seen: list[dict], speed: float, length: int) -> None:
    means = {name: _finite_mean([losses[name] for losses in seen]) for name in seen[0]}
    progress, settings = run.progress, run.settings
    line = {"step": progress.step, "tokens": progress.tokens, "length": length, "rate": round(run.rate(), 4)}
    with (run.folder / "curve.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps({**line, **{name: round(value, 4) for name, value in means.items()}}) + "\n")
    log.info(
        "step %d, %.2fM of %.1fM tokens, length %d, %s, %.0f tokens/s, %.0f min left",
        progress.step,
        progress.tokens / 1e6,
        settings["tokens"] / 1e6,
        length,
        ", ".join(f"{name} {value:.3f}" for name, value in means.items()),
        speed,
        (settings["tokens"] - progress.tokens) / speed / 60,
    )


def watched_rows(links: torch.Tensor, count: int, step: int) -> torch.Tensor:
    """Return query rows to look at: half of them anywhere past the first, half where some row of the batch has a link
    from a value or an answer."""
    chance = torch.Generator().manual_seed(step)
    rows = torch.randint(count, links.shape[1], (count,), generator=chance)
    linked = (links[:, 1:, LINKS.index("name")] >= 0).any(0).nonzero().flatten() + 1
    if len(linked):
        rows[: count // 2] = linked[torch.randint(len(linked), (count // 2,), generator=chance)]
    return rows


def guide_loss(guide: dict, watched: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
    """Return the loss of the guided heads: some look at the previous token, some along the links of batches.py.

    ``watched`` [layers, batch, heads, rows, 1 + kinds] are log weights on the previous token and on the links' ends;
    ``links`` is [batch, rows, kinds]. Such heads together copy and recall (Olsson et al., 2022).
    """
    losses = [_below(guide["mass"], watched[layer, :, head, :, 0]) for layer, head in guide["previous"]]
    for index, kind in enumerate(LINKS):
        where = links[..., index] >= 0
        if where.any():
            ends = watched[..., 1 + index]
            losses += [_below(guide["mass"], ends[layer, :, head][where]) for layer, head in guide[kind]]
    return torch.stack(losses).mean()


def _below(mass: float, log_mass: torch.Tensor) -> torch.Tensor:
    """Return how far, in nats, attention mass lies below the wanted one on average."""
    return F.relu(math.log(mass) - log_mass).mean()


def _mean(values: torch.Tensor, where: torch.Tensor) -> float:
    chosen = values[where.flatten()]
    return chosen.mean().item() if len(chosen) else float("nan")


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else 0.0
