"""What the report needs of answers in the stages' JSON: those of evaluate, and those of bench under KV policies."""

from __future__ import annotations

from typing import Any

from pipeline.reporting.measured import Measured, Record


class Sample(Record):
    """One answer to a test dialogue."""

    id: str
    prompt: Any
    reference: str
    answer: str


class PolicyAnswer(Record):
    """One answer under a KV policy, with the entries a layer at its end and those evicted until then."""

    id: str
    answer: str
    entries: Measured
    evicted: Measured


class PolicyAnswers(Record):
    """The answers of one model under one KV policy to the samples of evaluate."""

    policy: str
    budget: int | None = None
    answers: list[PolicyAnswer]

    @property
    def name(self) -> str:
        """The policy with its budget, where it has one."""
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"
