"""The course of a run: progress while it goes, eval/train (DVCLive's curves and summary.json) when it is done."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from pipeline.metrics.measure import measure

log = logging.getLogger(__name__)

COLUMNS = ("loss", "eval_loss", "learning_rate")
POINTS = 100  # of the loss curve, at most


class Course(TrainerCallback):
    """Evenly spaced evaluations and checkpoints, a bar on a terminal, and one line in the log an evaluation."""

    def __init__(self, evals: int):
        self.evals = evals

    def on_train_begin(self, args, state, control, **kwargs):
        state.eval_steps = state.save_steps = math.ceil(state.max_steps / self.evals)
        state.logging_steps = math.ceil(state.max_steps / POINTS)
        hide = None if state.is_world_process_zero else True
        self.bar = tqdm(desc="train", unit=" steps", total=state.max_steps, initial=state.global_step, disable=hide)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.is_world_process_zero:
            log.info("train: step %d of %d, eval loss %.4f", state.global_step, state.max_steps, metrics["eval_loss"])

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def write(state: TrainerState, directory: Path) -> None:
    """Write the curves of a finished run into ``directory`` with DVCLive.

    They come from the trainer's own history, which its checkpoints carry, so a run that was resumed shows all of it.
    """
    from dvclive import Live

    logging.getLogger("dvclive").setLevel(logging.WARNING)
    with Live(str(directory), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        for entry in state.log_history:
            live.step = entry["step"]
            for column in COLUMNS:
                if column in entry:
                    live.log_metric(column, entry[column])


def summary(state: TrainerState, counts: dict[str, dict], trainable: int) -> dict[str, Any]:
    """Return what a run did: its length, its data (``counts`` by split), its size and its eval losses."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    answer_tokens = counts["validation"]["answer_tokens"]
    eval_loss = {"first": losses[0], "last": losses[-1], "best": min(losses)}
    return {
        "steps": state.global_step,
        "epochs": round(state.epoch, 4),
        "stopped_early": state.global_step < state.max_steps,
        "best_step": state.best_global_step,
        "tokens_trained": round(counts["train"]["tokens"] * state.epoch),
        "trainable_parameters": trainable,
        "eval_loss": {
            name: measure(loss, n=answer_tokens, unit="nats/token", better="lower") for name, loss in eval_loss.items()
        },
        "data": counts,
    }
