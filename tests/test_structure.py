"""The house keeps its own rules: the DAG declares what stages read, arrows point one way, the README cannot drift."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.config import Params
from tests.conftest import ROOT

DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# Read by every stage and changing no result: to re-run everything for them would teach people to ignore the DAG.
PLUMBING = {f"pipeline/{name}.py" for name in ("__init__", "config", "errors", "io", "recipes", "runtime", "schema")}
PLUMBING |= {"pipeline/stage.py", "pipeline/hub.py"}
STAGES = {stage: f"pipeline/{stage.removesuffix('-quantized')}.py" for stage in DAG}
LAYERS = {  # folder: what it may import of ours, besides plumbing
    "pipeline/kv": ("pipeline/kv",),
    "pipeline/metrics": ("pipeline/metrics",),
    "pipeline/reporting": ("pipeline/reporting", "pipeline/metrics"),
    "pipeline/engines": ("pipeline/engines", "pipeline/kv", "pipeline/prompts.py"),
}


def modules() -> list[Path]:
    return sorted((ROOT / "pipeline").rglob("*.py"))


def resolve(name: str) -> str | None:
    """Return the file of one of our modules by its dotted name."""
    path = ROOT / name.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return str(file.relative_to(ROOT))
    return None


@cache
def imports(file: str) -> frozenset[str]:
    """Return the files of ours that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {resolve(name) for name in names if name.startswith("pipeline")}
    return frozenset(found - {None})


def closure(file: str) -> set[str]:
    """Return everything of ours that a file needs, plumbing left out."""
    seen, todo = set(), [file]
    while todo:
        current = todo.pop()
        if current not in seen and current not in PLUMBING:
            seen.add(current)
            todo += imports(current)
    return {name for name in seen if not name.endswith("__init__.py")}


@pytest.mark.parametrize("stage", DAG)
def test_a_stage_declares_the_code_it_runs(stage):
    declared = [dep for dep in DAG[stage]["deps"] if dep.startswith("pipeline/")]
    undeclared = {f for f in closure(STAGES[stage]) if not any(f == d or f.startswith(f"{d}/") for d in declared)}
    assert not undeclared, f"add to deps of {stage}"


@pytest.mark.parametrize("stage", DAG)
def test_a_stage_has_a_description_and_existing_deps(stage):
    assert DAG[stage]["desc"]
    tracked = [dep for dep in DAG[stage]["deps"] if dep.startswith(("pipeline/", "recipes/", "data/embedded"))]
    assert all((ROOT / dep).exists() for dep in tracked)


def test_every_section_of_params_is_read_by_a_stage():
    read = {str(p).split(".")[0] for stage in DAG.values() for p in stage.get("params", []) if isinstance(p, str)}
    assert set(Params.model_fields) == read


@pytest.mark.parametrize("folder", LAYERS)
def test_arrows_point_one_way(folder):
    for file in (ROOT / folder).rglob("*.py"):
        outside = imports(str(file.relative_to(ROOT))) - PLUMBING - {"pipeline/__init__.py"}
        stray = {f for f in outside if not f.startswith(LAYERS[folder])}
        assert not stray, f"{file.relative_to(ROOT)} imports {stray}"


def test_nothing_imports_a_stage():
    allowed = {"pipeline/__main__.py", "pipeline/check.py", "pipeline/catalogue.py"}
    for file in modules():
        name = str(file.relative_to(ROOT))
        strays = imports(name) & set(STAGES.values())
        assert not strays or name in allowed, f"{name} imports {strays}"


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_stays_small(file):
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 300


def test_the_stage_table_of_the_readme_is_the_dag():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- stages -->\n(.*?)<!-- /stages -->", readme, flags=re.DOTALL)[1]
    rows = "".join(f"| `{name}` | {stage['desc']} |\n" for name, stage in DAG.items())
    assert table == f"| Stage | What it does |\n|---|---|\n{rows}"
