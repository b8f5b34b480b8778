"""What all parts of a stage's JSON are: frozen records, and measured numbers in them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Record(BaseModel):
    """A part of a stage's JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Measure(Record):
    """A measured number (pipeline.metrics.measure); "nan" and "inf" become the numbers they name."""

    value: float
    stderr: float | None = None
    ci95: tuple[float, float] | None = None
    n: int | None = None
    unit: str | None = None
    better: str | None = None

    @property
    def finite(self) -> bool:
        """Whether there is a number to compare."""
        return math.isfinite(self.value)


def _as_measure(raw: Any) -> Any:
    return {"value": raw} if isinstance(raw, int | float | str) else raw


Measured = Annotated[Measure, BeforeValidator(_as_measure)]  # a count may stand as a plain number
