"""Outs appear whole or not at all."""

from __future__ import annotations

import pytest

from pipeline import io


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    io.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        io.write_json(path, {"new": object()})
    with pytest.raises(RuntimeError), io.atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert io.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    target = tmp_path / "out"
    with io.atomic_dir(target) as partial:
        (partial / "x").write_text("whole")
    with pytest.raises(RuntimeError), io.atomic_dir(target) as partial:
        (partial / "y").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "x"]


def test_a_new_directory_replaces_the_old_one(tmp_path):
    for name in ("x", "y"):
        with io.atomic_dir(tmp_path / "out") as partial:
            (partial / name).write_text("12345")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["y"]
    assert io.size_bytes(tmp_path / "out") == io.size_bytes(tmp_path / "out" / "y") == 5


def test_json_lines_come_back(tmp_path):
    records = [{"a": "好"}, {"b": "line\nbreak \u2028"}]
    assert io.write_jsonl(tmp_path / "r.jsonl", iter(records)) == 2
    assert list(io.read_jsonl(tmp_path / "r.jsonl")) == records
