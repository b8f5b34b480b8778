"""Strict, frozen settings: YAML becomes a value, or one line for every problem in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConfigError, nearest


class Section(BaseModel):
    """A section of a settings file: immutable, and with no key that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Section)


def read(path: str | Path, model: type[Model]) -> Model:
    """Read a YAML file as ``model``; raise ConfigError with one line for each problem found."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run from the root of the repository") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(raw, model, path)


def parse(raw: Any, model: type[Model], path: Path) -> Model:
    """Return ``raw``, read from ``path``, as ``model``; raise ConfigError with one line for each problem found."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(*(_explain(model, path, problem) for problem in error.errors())) from None


def _explain(model: type[BaseModel], path: Path, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        known = _keys(model, problem["loc"][:-1])
        return f"{path}: {key}: unknown key{nearest(str(problem['loc'][-1]), known)} (known here: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"{path}: {key}: missing, and it has no default; add it"
    if problem["type"] == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        key = f"{key}.{problem['ctx']['discriminator'].strip(chr(39))}"
        return f"{path}: {key}: no such part, '{tag}'{nearest(tag, known)} (known: {', '.join(known)})"
    return f"{path}: {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _keys(model: type[BaseModel], loc: tuple) -> list[str]:
    """Return the keys of the section at ``loc``; of a union, those of the section that its tag in ``loc`` names."""
    sections = [model]
    for part in loc:
        inner = [found for one in sections if part in one.model_fields for found in _sections(one.model_fields[part])]
        tagged = [one for one in sections if part in _tags(one)]
        sections = inner or tagged or sections
    return list(dict.fromkeys(key for one in sections for key in one.model_fields))


def _sections(field: Any) -> list[type[BaseModel]]:
    """Return the sections that a field, or a part of its type, may hold."""
    annotation = getattr(field, "annotation", field)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _sections(inner)]


def _tags(section: type[BaseModel]) -> set[Any]:
    """Return the literals that tell a section from the others of a union."""
    return {value for field in section.model_fields.values() for value in get_args(field.annotation)}
