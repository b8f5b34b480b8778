"""A stage's exit codes and the lines it prints for a user's mistakes."""

from __future__ import annotations

import errno

import pytest

from pipeline import io, stage
from pipeline.errors import ConfigError, UserError, nearest


def fail_with(error: Exception):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a.jsonl: empty", "b.jsonl: missing"), 1, ["error: a.jsonl: empty", "error: b.jsonl: missing"]),
        (ConfigError("params.yaml: lora.r: bad"), 2, ["error: params.yaml: lora.r: bad"]),
        (OSError(errno.ENOSPC, "No space left on device", "artifacts/x/w.bin"), 1, ["no space left", "artifacts/x"]),
    ],
)
def test_a_users_mistake_is_plain_lines_and_a_code(capsys, error, code, said):
    assert stage.report_errors(fail_with(error)) == code
    printed = capsys.readouterr().err
    assert all(part in printed for part in said)
    assert "Traceback" not in printed


def test_our_own_mistake_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        stage.report_errors(lambda: 1 / 0)


def test_success_is_zero():
    assert stage.report_errors(lambda: None) == 0


def test_timings_are_written_when_the_block_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with stage.timed("train") as timings:
        timings["tokens_per_second"] = 7
    record = io.read_json("eval/timings/train.json")
    assert record["seconds"] >= 0
    assert record["peak_rss_bytes"] > 1e6
    assert record["tokens_per_second"] == 7


def test_nearest_name():
    assert nearest("Q4_KM", ["Q4_K_M", "F16"]) == "; did you mean 'Q4_K_M'?"
    assert nearest("zzz", ["Q4_K_M"]) == ""
