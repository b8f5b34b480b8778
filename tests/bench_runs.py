"""Settings of a benchmark that takes seconds, and the dialogues that it reads."""

from __future__ import annotations

from pipeline.config import Answers, Lossless, Params

SETTINGS = {
    "encodings": ("Q4_0",),
    "policies": (
        "full",
        "recent_only",
        "streaming_llm",
        "snapkv",
        "h2o",
        "pyramidkv",
        "gemfilter",
        "fastkv",
        "infllm",
        "kv_q8_0",
        "kv_q4_0",
    ),
    "depths": (96, 320),
    "budgets": (64,),
    "slack": 8,
    "decode_tokens": 8,
    "warmup_tokens": 2,
    "repetitions": 2,
    "scored_tokens": 60,
    "recall_contexts": 1,
    "recall_questions": 2,
    "conversations": 2,
    "lossless": Lossless(policies=("streaming_llm", "kv_q4_0"), draft_tokens=3),
    "answers": Answers(policies=("full", "streaming_llm", "snapkv", "kv_q4_0"), budget=40),
}
ANSWERED = {"dialogues": 30, "samples": 2, "max_new_tokens": 40}


def chats(count: int) -> list[dict]:
    """Return short dialogues."""
    return [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"我咳嗽{i}天了，还流清涕，应该怎么办？"},
                {"role": "assistant", "content": f"多喝温水，注意休息，每天睡够{i % 9}小时。"},
            ],
        }
        for i in range(count)
    ]


def with_bench(params: Params, **changes) -> Params:
    """Return params of a small benchmark."""
    bench = params.bench.model_copy(update=SETTINGS | changes)
    return params.model_copy(update={"bench": bench, "evaluate": params.evaluate.model_copy(update=ANSWERED)})
