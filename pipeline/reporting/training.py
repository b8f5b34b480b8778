"""The section on training: losses and learning rate over the tokens seen, and what it took."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.reporting import figures
from pipeline.reporting.load import Curve, Results
from pipeline.reporting.table import plain

THOUSAND = 1e3


def loss_figure(results: Results) -> Markup:
    """Return the training and eval loss over tokens."""
    series = [
        figures.Series("training loss", _over_tokens(results, "loss")),
        figures.Series("eval loss", _over_tokens(results, "eval_loss"), marked=True),
    ]
    return figures.curves("Training and eval loss over tokens", series, "thousand tokens", "loss, nats a token")


def rate_figure(results: Results) -> Markup:
    """Return the learning rate over tokens."""
    series = [figures.Series("learning rate", _over_tokens(results, "learning_rate"))]
    return figures.curves("Learning rate over tokens", series, "thousand tokens", "learning rate", zero=True)


def _over_tokens(results: Results, name: str) -> Curve:
    """Return a curve over thousands of tokens: packed rows are of like length, so every step sees as many."""
    a_step = results.train.tokens_trained / max(results.train.steps, 1) / THOUSAND
    return [(step * a_step, value) for step, value in results.curves[name]]


def facts(results: Results) -> list[tuple[str, str, str]]:
    """Return the few numbers of a training run: name, value, what it means."""
    train, timing = results.train, results.timings["train"]
    losses = " → ".join(plain(train.eval_loss[which].value, 3) for which in ("first", "best"))
    rate = timing.tokens_per_second
    return [
        ("Eval loss ↓", losses, f"best at step {train.best_step}" if train.best_step else "nats a token"),
        ("Tokens seen", plain(train.tokens_trained, 0), f"{train.steps} steps, epochs: {train.epochs:.3g}"),
        ("Throughput", "–" if rate is None else plain(rate, 0), "tokens a second"),
        ("Adapter", plain(train.trainable_parameters, 0), "weights trained"),
    ]
