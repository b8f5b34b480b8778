"""Model cards: front matter that the hub's own reader takes, numbers that are the JSON's, a folder ready to upload."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from pipeline import __main__ as cli
from pipeline import cards, config, io, publish
from pipeline.errors import UserError
from pipeline.export import NOT_ADVICE, write_card
from pipeline.reporting.cards import METRICS, artifacts
from tests.report_pages import bend, workspace


@pytest.fixture
def made(params, tmp_path, monkeypatch):
    """Params of a whole run in a working directory that holds its JSON and its artifacts' own cards."""
    small = workspace(params, tmp_path, monkeypatch)
    bend("data/chat/summary.json", "source", "repo", value="tyang816/MedChatZH")
    bend("data/chat/summary.json", "source", "revision", value="0123abc")
    for name, folder in artifacts(small).items():
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name)
        write_card(
            folder,
            title=f"Model {name}",
            base_model="Qwen/Qwen3-0.6B",
            relation="quantized",
            library="gguf",
            license="apache-2.0",
            languages=["zh"],
            datasets=[],
            tags=["medical"],
            body="How to run it.",
        )
    monkeypatch.setattr(config, "load", lambda: small)
    return small


def front(name: str) -> dict:
    card = Path(f"artifacts/cards/{name}/README.md").read_text(encoding="utf-8")
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(("name", "cell"), [("Q4_K_M", "Q4_K_M"), ("merged", "merged"), ("adapter", "merged")])
def test_the_hub_reads_the_values_of_the_json(made, name, cell):
    cards.main(made)
    written = front(name)
    title, results = model_index_to_eval_results(written["model-index"])
    measured = io.read_json(f"eval/quality/{cell}.json")["metrics"]
    assert title == f"Model {name}"
    by_type = {metric.type: metric for metric in METRICS}
    for result in results:
        metric = by_type[result.metric_type]
        assert result.metric_value == measured[metric.key]["value"]
        assert (result.metric_name, result.dataset_type) == (metric.name, "tyang816/MedChatZH")
    assert {result.metric_type for result in results} == {
        metric.type for metric in METRICS if cell != "merged" or not metric.beside_merged
    }
    assert ModelCardData(**{key.replace("-", "_"): value for key, value in written.items()}).datasets == [
        "tyang816/MedChatZH"
    ]
    assert {"license", "language", "base_model", "pipeline_tag", "tags", "metrics"} <= set(written)


def test_a_card_keeps_its_words_and_adds_numbers_and_terms(made):
    cards.main(made)
    for name in artifacts(made):
        card = Path(f"artifacts/cards/{name}/README.md").read_text(encoding="utf-8")
        for words in (NOT_ADVICE, "How to run it.", "## Measured", "same as this repository", "not medical advice"):
            assert words in card
    shown = Path("artifacts/cards/Q8_0/README.md").read_text(encoding="utf-8")
    assert "| Perplexity of the reference answers ↓ | 35.41 ± 0.59 | 35.40 ± 0.59 | 107.40 ± 1.79 |" in shown
    assert "with this adapter" in Path("artifacts/cards/adapter/README.md").read_text(encoding="utf-8")


def test_what_is_no_number_is_not_in_the_index(made):
    bend("eval/quality/Q8_0.json", "metrics", "perplexity", "value", value="inf")
    cards.main(made)
    types = [metric["type"] for metric in front("Q8_0")["model-index"][0]["results"][0]["metrics"]]
    assert "perplexity" not in types
    assert "bertscore" in types


def test_missing_cards_are_named_together(made):
    for name in ("merged", "quantized/Q8_0"):
        Path(f"artifacts/{name}/README.md").unlink()
    with pytest.raises(UserError) as error:
        cards.main(made)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "artifacts/merged/README.md",
        "artifacts/quantized/Q8_0/README.md",
    ]
    assert not Path("artifacts/cards").exists()


def test_hostile_names_stay_text(made):
    bend("data/chat/summary.json", "source", "name", value="a|b\n---\n<script>x</script>: [")
    cards.main(made)
    assert front("merged")["model-index"][0]["results"][0]["dataset"]["name"].startswith("a|b --- <script>")
    assert (
        "<script>" not in Path("artifacts/cards/merged/README.md").read_text(encoding="utf-8").split("## Measured")[1]
    )


def test_publish_joins_artifact_and_card(made, monkeypatch):
    cards.main(made)
    monkeypatch.setattr(sys, "argv", ["pipeline", "publish", "Q4_K_M", "upload/Q4_K_M"])
    assert cli.main() == 0
    assert Path("upload/Q4_K_M/weights").read_text() == "Q4_K_M"
    assert "## Measured" in Path("upload/Q4_K_M/README.md").read_text(encoding="utf-8")
    assert "## Measured" not in Path("artifacts/quantized/Q4_K_M/README.md").read_text(encoding="utf-8")
    assert Path("upload/Q4_K_M/weights").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("artifact", "folder", "problem"),
    [
        ("Q4_K", "upload", r"no artifact 'Q4_K'; did you mean 'Q4_K_M'"),
        ("Q8_0", "eval", r"artifacts/cards/Q8_0/README.md: missing; run `dvc repro cards`\neval: exists already"),
    ],
)
def test_publish_says_what_is_wrong(made, artifact, folder, problem):
    with pytest.raises(UserError, match=problem):
        publish.main(argparse.Namespace(artifact=artifact, folder=Path(folder)))
