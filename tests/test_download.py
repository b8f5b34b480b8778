"""download: files of every source land in data/raw as they are, or nothing does and the error says why."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import download, io
from pipeline.errors import UserError
from tests.fake_hub import COMMIT, REPO, FakeHub

ROOT = Path(__file__).parents[1]
LINE = '{"instruction": "我咳嗽三天了，怎么办？", "input": "", "output": "多喝温水，注意休息。"}\n'
CHUNK = 10 << 20  # bytes that huggingface_hub writes at once, and so can resume from
HUB_FILES = {
    "MedChatZH_train.json": (LINE * (CHUNK // len(LINE))).encode(),
    "MedChatZH_valid.json": (LINE * 5).encode(),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_data(params, **changes):
    """Return params with other keys under data."""
    return params.model_copy(update={"data": params.data.model_copy(update=changes)})


def from_paths(params, train, test=()):
    return with_data(params, source="path", path=tuple(map(str, train)), test_path=tuple(map(str, test)))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_embedded(here, params):
    for split, count in (("train", 3), ("test", 2)):
        write(here / f"data/embedded/dialogues/{split}.jsonl", LINE * count)
    download.main(with_data(params, source="embedded"))
    source = io.read_json("data/raw/source.json")
    assert {file["path"]: file["lines"] for file in source["files"]} == {"train/train.jsonl": 3, "test/test.jsonl": 2}
    assert source["source"] == "embedded"


def test_path_copies_bytes_and_keeps_files_of_one_name_apart(here, params):
    line = LINE.encode()
    contents = [b"\xef\xbb\xbf" + line, line + line.rstrip(b"\n"), b"\xff\xfe not text\r\n" + line]
    files = [write(here / name / "x.jsonl", content) for name, content in zip("abc", contents, strict=True)]
    download.main(from_paths(params, files))
    entries = io.read_json("data/raw/source.json")["files"]
    assert [entry["path"] for entry in entries] == ["train/x.jsonl", "train/x-2.jsonl", "train/x-3.jsonl"]
    assert [entry["lines"] for entry in entries] == [1, 2, 2]
    for entry, content in zip(entries, contents, strict=True):
        assert (here / "data/raw" / entry["path"]).read_bytes() == content
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
    assert not (here / "data/raw/test").exists()


def test_all_problems_at_once_and_nothing_written(here, params):
    good = write(here / "good.jsonl", LINE)
    bad = [
        here / "missing.jsonl",
        write(here / "empty.jsonl", ""),
        write(here / "blank.jsonl", " \n\r\n" * 40000),
        write(here / "array.json", "[\n  " + LINE + "]"),
    ]
    with pytest.raises(UserError) as caught:
        download.main(from_paths(params, [good, *bad[:2]], bad[2:]))
    expected = ["no such file", "empty", "empty", "one JSON array"]
    assert len(caught.value.problems) == len(bad)
    for problem, path, words in zip(caught.value.problems, bad, expected, strict=True):
        assert problem.startswith(f"{path}: {words}")
    assert not (here / "data").exists()


def test_a_failure_leaves_the_former_files(here, params):
    download.main(from_paths(params, [write(here / "a.jsonl", LINE)]))
    before = io.sha256("data/raw/source.json")
    with pytest.raises(UserError):
        download.main(from_paths(params, [here / "gone.jsonl"]))
    assert io.sha256("data/raw/source.json") == before
    assert [path.name for path in (here / "data").iterdir()] == ["raw"]


def run_hub(here: Path, endpoint: str, revision: str = "main", train: str = "MedChatZH_train.json", **env: str):
    """Run the stage against a hub in a process of its own; return the finished process."""
    config = {"repo": REPO, "revision": revision, "train": train, "test": "MedChatZH_valid.json"}
    code = (
        "import json, sys; from pipeline import config, download, stage; stage.start_logging();"
        "params = config.load(); hub = config.Hub(**json.loads(sys.argv[1]));"
        "data = params.data.model_copy(update={'source': 'hub', 'hub': hub});"
        "action = lambda: download.main(params.model_copy(update={'data': data}));"
        "sys.exit(stage.report_errors(action))"
    )
    for name in ("params.yaml", "recipes"):
        if not (here / name).exists():
            (here / name).symlink_to(ROOT / name)
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "0"} | env
    command = [sys.executable, "-c", code, json.dumps(config)]
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("faults", "gets"),
    [
        ({}, [None]),
        ({"busy": {"GET main": 1}}, [None]),
        ({"busy": {"HEAD MedChatZH_train.json": 2, "GET MedChatZH_train.json": 2}}, [None, None, None]),
        ({"cut_after": 1000}, [None, None]),
        ({"cut_after": CHUNK + 1000}, [None, f"bytes={CHUNK}-"]),
    ],
    ids=["plain", "busy", "busy file", "cut early", "cut late"],
)
def test_hub(here, faults, gets):
    with FakeHub(HUB_FILES, **faults) as hub:
        done = run_hub(here, hub.url)
        assert done.returncode == 0, done.stderr
        assert hub.gets("MedChatZH_train.json") == gets
    source = io.read_json(here / "data/raw/source.json")
    assert (source["repo"], source["revision"]) == (REPO, COMMIT)
    for entry, content in zip(source["files"], HUB_FILES.values(), strict=True):
        assert (here / "data/raw" / entry["path"]).read_bytes() == content
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_hub_fetches_once_and_then_works_offline(here):
    with FakeHub(HUB_FILES) as hub:
        assert run_hub(here, hub.url).returncode == 0
        assert run_hub(here, hub.url).returncode == 0
        assert len(hub.gets("MedChatZH_train.json")) == 1
    done = run_hub(here, hub.url, revision=COMMIT, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert io.read_json(here / "data/raw/source.json")["revision"] == COMMIT


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"revision": "nonsense"}, ["nonsense", "Revision Not Found", "data.source=embedded"]),
        ({"train": "MedChatZH_trian.json"}, ["no file 'MedChatZH_trian.json'", "did you mean 'MedChatZH_train.json'?"]),
    ],
)
def test_hub_without_the_revision_or_file(here, wrong, words):
    with FakeHub(HUB_FILES) as hub:
        done = run_hub(here, hub.url, **wrong)
    assert_one_error(done, words)
    assert not (here / "data").exists()


def test_unreachable_hub_says_how_to_go_on_without_it(here):
    with FakeHub({}) as hub:
        endpoint = hub.url
    started = time.monotonic()
    done = run_hub(here, endpoint)
    assert_one_error(done, [REPO, "data.source=embedded", "data.source=path"])
    assert time.monotonic() - started < 60
    assert not (here / "data").exists()


def assert_one_error(done, words):
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors
    assert "Traceback" not in done.stderr
