"""recipes/references/*.yaml: the figures of the project's origin and of the papers, and what is wrong with some."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline import recipes
from pipeline.schema import Section

KIND = "references"
ERRATA = "errata"  # the one file of the folder that is no table

Text = Annotated[str, Field(min_length=1)]
Figure = float | str  # a word stands where no number is printed, such as OOM


class Heading(Section):
    """One column as the source prints it, and the measure of ours that may stand beside it."""

    name: Text
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    ours: Literal["perplexity", "top1", "recall", "ttft", "tpot", "tokens_per_second", "kv_bytes"] | None = None


class Line(Section):
    """One row as the source prints it.

    ``policy`` names our recipe of the same method, ``encoding`` our weight format, where there is one; ``share`` is
    the part of full KV's entries that the row keeps, averaged over layers, where the source allows to tell.
    """

    method: Text
    policy: str | None = None
    encoding: str | None = None
    base: bool = False  # the row that the others are measured beside
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    values: dict[str, Figure | None]
    note: str = ""


class Reference(Section):
    """One published table: where it stands, what was measured on what and how, and why ours differ."""

    title: Text
    source: Text
    model: Text
    data: Text
    protocol: Text
    columns: Annotated[tuple[Heading, ...], Field(min_length=1)]
    rows: Annotated[tuple[Line, ...], Field(min_length=1)]
    differs: Text
    errata: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> Reference:
        names = [column.name for column in self.columns]
        for row in self.rows:
            if stray := [name for name in row.values if name not in names]:
                raise ValueError(f"row '{row.method}' has values for {', '.join(stray)}, which no column is named")
        if sum(row.base for row in self.rows) > 1:
            raise ValueError("more than one row says base: true; the others are measured beside one")
        return self

    @property
    def base(self) -> Line | None:
        """The row that the others are measured beside."""
        return next((row for row in self.rows if row.base), None)


class Erratum(Section):
    """What is wrong, missing or easily misread in a source."""

    id: Text
    where: Text
    finding: Text


class Errata(Section):
    """recipes/references/errata.yaml."""

    errata: tuple[Erratum, ...]


def names() -> list[str]:
    """Return the names of all published tables, sorted."""
    return [name for name in recipes.names(KIND) if name != ERRATA]


def read(name: str) -> Reference:
    """Read one published table; raise ConfigError with what does not fit."""
    return recipes.read(KIND, name, Reference)


def load() -> dict[str, Reference]:
    """Read every published table, by name; errors as read's."""
    return {name: read(name) for name in names()}


def errata() -> tuple[Erratum, ...]:
    """Read what is wrong with the sources; nothing where the folder is absent."""
    return recipes.read(KIND, ERRATA, Errata).errata if ERRATA in recipes.names(KIND) else ()
