"""Rows of fine-tuning: an example a turn, what is cut, packing, isolation of packed examples."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline import io, prompts, train
from pipeline.errors import UserError
from pipeline.sft import dataset

pytest_plugins = ["tests.training_workspace"]


class TestRows:
    def test_an_example_a_turn_with_loss_on_the_answer_alone(self, tokenizer, dialogues, tmp_path):
        io.write_jsonl(tmp_path / "chat.jsonl", dialogues)
        counts = Counter()
        rows = list(dataset.examples(tmp_path / "chat.jsonl", tokenizer, 1024, counts))
        turns = [turn for record in dialogues for turn in prompts.turns(record["messages"])]
        assert len(rows) == len(turns) == counts["examples"] == 4
        for row, turn in zip(rows, turns, strict=True):
            prompt, answer = prompts.example_ids(tokenizer, turn)
            assert row["input_ids"] == prompt + answer
            assert row["labels"] == [dataset.NO_LOSS] * len(prompt) + answer
            assert row["labels"][-1] == prompts.end_of_turn_id(tokenizer)
        assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)

    @pytest.mark.parametrize("spare", [-5, 0, 1, 7, 1000])
    def test_the_prompt_is_cut_and_the_answer_never(self, tokenizer, dialogues, tmp_path, spare):
        io.write_jsonl(tmp_path / "chat.jsonl", dialogues[:1])
        prompt, answer = prompts.example_ids(tokenizer, dialogues[0]["messages"])
        counts = Counter()
        rows = list(dataset.examples(tmp_path / "chat.jsonl", tokenizer, len(answer) + spare, counts))
        if spare <= 0:
            assert rows == []
            assert counts["dropped"] == 1
            return
        assert rows[0]["input_ids"] == (prompt + answer)[-len(answer) - spare :]
        assert [label for label in rows[0]["labels"] if label != dataset.NO_LOSS] == answer
        assert counts["cut"] == (spare < len(prompt))

    def test_a_split_without_an_example_is_named(self, workspace, tokenizer, small):
        short = small.train.model_copy(update={"max_length": 3})
        with pytest.raises(UserError) as error:
            dataset.rows(train.SPLITS, tokenizer, short, workspace / "cache")
        assert [problem.split(":")[0] for problem in error.value.problems] == [str(p) for p in train.SPLITS.values()]
        assert "train.max_length = 3" in error.value.problems[0]

    def test_packing_keeps_every_example_whole(self, workspace, tokenizer, small):
        loose = small.train.model_copy(update={"packing": False})
        separate, _ = dataset.rows(train.SPLITS, tokenizer, loose, workspace / "a")
        packed, _ = dataset.rows(train.SPLITS, tokenizer, small.train, workspace / "b")
        pieces = []
        for row in packed["train"]:
            ends = [sum(row["seq_lengths"][: i + 1]) for i in range(len(row["seq_lengths"]))]
            for end, length in zip(ends, row["seq_lengths"], strict=True):
                pieces.append((tuple(row["input_ids"][end - length : end]), tuple(row["labels"][end - length : end])))
        assert len(packed["train"]) < len(separate["train"]) / 2
        assert Counter(pieces) == Counter((tuple(r["input_ids"]), tuple(r["labels"])) for r in separate["train"])


def test_packed_examples_do_not_see_one_another(workspace, small, tokenizer):
    """The trainer's loss of a packed batch is the token mean of losses computed one example at a time."""
    import torch

    trainer, _ = train.prepare(small, train.arguments(small, workspace / "run"), tokenizer)
    model = trainer.model.eval()
    base = model.get_base_model()
    for weight in model.parameters():  # sharper attention: a leak would show
        if weight.dim() > 1:
            weight.data.mul_(3)
    rows = [trainer.train_dataset[i] for i in range(3)]
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = trainer.data_collator(rows)

    examples = dataset.examples(train.SPLITS["train"], tokenizer, small.train.max_length, Counter())
    losses = {tuple(row["input_ids"]): row["labels"] for row in examples}
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            start = 0
            for length in row["seq_lengths"]:
                ids = row["input_ids"][start : start + length]
                labels = torch.tensor(losses[tuple(ids)])[1:]
                logits = type(base).forward(base, torch.tensor([ids])).logits[0, :-1]
                total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
                tokens += int((labels != dataset.NO_LOSS).sum())
                start += length
        packed = trainer.compute_loss(model, dict(batch)).item()
        running = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        leaking = trainer.compute_loss(model, batch | {"position_ids": running}).item()
    assert packed == pytest.approx(total / tokens, abs=1e-4)
    assert abs(leaking - packed) > 1e-2
