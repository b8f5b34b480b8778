"""params.yaml: every problem at once, each with its key, its value and the nearest name."""

from __future__ import annotations

import pytest

from pipeline import config
from pipeline.errors import ConfigError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def broken(tmp_path, *changes: tuple[str, str]) -> str:
    """Return the message for params.yaml with each (old, new) replaced."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert error.value.exit_code == 2
    return str(error.value)


def test_the_shipped_params_are_valid():
    assert config.load().lora.r > 0


CASES = [
    ([("  alpha: 16", "  alhpa: 16")], ["lora.alhpa: unknown key; did you mean 'alpha'?", "lora.alpha: missing"]),
    ([("  r: 8", "  r: abc")], ["lora.r:", "got 'abc'"]),
    ([("  r: 8", "  r: 0")], ["lora.r:", "greater than 0"]),
    ([("model: nano", "model: nanno")], ["model: no recipe 'nanno'", "did you mean 'nano'?"]),
    ([("encodings: [F16, Q8_0", "encodings: [F16, Q8")], ["quantize.encodings: no recipe 'Q8'", "'Q8_0'"]),
    ([("encodings: [Q4_K_M]", "encodings: [Q5_K_M]")], ["bench.encodings: 'Q5_K_M' is not in quantize.encodings"]),
    ([("[streaming_llm, snapkv]", "[snapvk]")], ["bench.lossless.policies: no recipe 'snapvk'", "'snapkv'"]),
    ([("[streaming_llm, snapkv, h2o_online]", "[h2o_onlin]")], ["bench.answers.policies: no recipe", "'h2o_online'"]),
    ([("    budget: 48", "    budget: 0")], ["bench.answers.budget:", "greater than 0"]),
    ([("source: embedded", "source: path")], ["data.path: empty"]),
    ([("source: embedded", "source: hup")], ["data.source:", "'hub'", "got 'hup'"]),
    ([("  seed: 42", "  seed: 42\n   x: 1")], ["not valid YAML"]),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_a_problem_names_key_value_and_remedy(tmp_path, changes, expected):
    message = broken(tmp_path, *changes)
    assert all(part in message for part in expected), message


def test_all_problems_are_told_at_once(tmp_path):
    message = broken(tmp_path, ("  r: 8", "  r: -1"), ("  dropout: 0.0", "  dropout: 2"), ("  seed: 42", "  sead: 42"))
    assert len(message.splitlines()) == 4


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="root of the repository"):
        config.load(tmp_path / "params.yaml")
