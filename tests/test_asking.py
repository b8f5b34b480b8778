"""Questions answered by several processes: every answer is where it belongs, and what one process alone gives."""

from __future__ import annotations

from pipeline.benching import asking, conversing, recalling
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.kv import recipe
from pipeline.kv.policy import FULL
from pipeline.tasks import dialogue, recall

from .bench_runs import chats

pytest_plugins = ["tests.gguf_models"]


class Bar:
    """Counts what is done."""

    done = 0

    def update(self, count: int) -> None:
        """Add to it."""
        self.done += count


def test_processes_answer_as_one_would(tiny_gguf, tiny_model_dir, tokenizer, params):
    gguf = tiny_gguf("Q4_0")
    (conversation,) = dialogue.conversations(tokenizer, [chat["messages"] for chat in chats(40)], 300, 1, seed=1)
    first, last = recall.contexts(tokenizer, "pairs", 200, 2, seed=1, questions=2)
    questions = [(recalling.asked, first), (conversing.asked, conversation), (recalling.asked, last)]
    with LlamaKvEngine(gguf, threads=1) as engine:
        online, voting = (recipe.read(name).policy(64, 8, engine.shape.layers) for name in ("h2o_online", "snapkv"))
        policies = (FULL, online, voting)
        expected = [ask(engine, policies, tasks, tokenizer) for ask, tasks in questions]
    two = params.runtime.model_copy(update={"threads": 2})
    bar = Bar()
    assert asking.answers(asking.Setting(gguf, tiny_model_dir, policies, two), questions, bar) == expected
    assert bar.done == len(questions) * len(policies)


def test_no_questions_start_no_process(tmp_path, params):
    missing = tmp_path / "missing"
    assert asking.answers(asking.Setting(missing, missing, (FULL,), params.runtime), [], Bar()) == []
