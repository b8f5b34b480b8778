"""A plausible set of the stages' JSON for the report's tests: written whole, then bent by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import io
from pipeline.config import Params
from pipeline.metrics.measure import measure

COSTS = {  # encoding: family, bytes, bits a weight, KLD, same top
    "F16": ("gguf", 16_100_000, 16.0, 0.00001, 0.998),
    "Q8_0": ("gguf", 8_700_000, 8.51, 0.0003, 0.991),
    "Q4_K_M": ("gguf", 5_300_000, 5.18, 0.027, 0.894),
    "Q4_0": ("gguf", 4_800_000, 4.66, 0.059, 0.843),
    "FP8-Dynamic": ("compressed", 9_900_000, 9.6, 0.002, 0.975),
    "W4A16": ("compressed", 6_800_000, 6.6, 0.048, 0.861),
    "W4A8": ("compressed", 6_800_000, 6.6, 0.055, 0.851),
}
MACHINE = {
    "cpu": "Example CPU @ 2.60GHz",
    "cores": 4,
    "threads": 2,
    "llama_cpp_python": "0.0.0",
    "flags": "CPU : AVX2 = 1 | FMA = 1",
}
POLICIES = {  # policy: entries at depth 1000, bytes an entry, perplexity, KLD, milliseconds a token
    "full": (1.0, 4096, 31.10, 0.0, 4.10),
    "recent_only": (0.25, 4096, 55.90, 0.61, 3.21),
    "streaming_llm": (0.25, 4096, 31.34, 0.031, 3.24),
    "snapkv": (0.3, 4096, 31.22, 0.022, 3.30),
    "kv_q8_0": (1.0, 2176, 31.11, 0.0004, 4.62),
    "kv_q4_0": (1.0, 1152, 31.52, 0.012, 4.71),
}
RECALL = {  # right answers of 20 where the question was seen at the cut, and not; None: there is no such cut
    "full": (18, None),
    "recent_only": (2, None),
    "streaming_llm": (4, None),
    "snapkv": (18, 17),
    "kv_q8_0": (18, None),
    "kv_q4_0": (17, None),
}
PUBLISHED = "published: ['2.1 times the speed', 'a score of 31.5 beside 30.2']\n"
SAMPLES = [
    ("我最近总是失眠，怎么办？", "您好，建议睡前少看手机，规律作息，必要时请就医。"),
    ("小儿发热三天，伴有咳嗽，需要做哪些检查？", "建议查血常规和胸片，多饮水，体温超过38.5℃可服退热药。"),
]
FORGOTTEN = {"full": "", "streaming_llm": "，忌辛辣"}  # what a policy adds to the answer of full KV
TAILS = {"base": "的的的的是什么病什么病", "Q4_0": "，也可以喝一点酸枣仁茶", "W4A8": "，不必担心"}


def write(root: Path, params: Params) -> None:
    """Write all that the report reads below ``root``."""
    for name, content in documents(params).items():
        io.write_json(root / name, content)
    for name, text in recipes(params).items():
        io.write_text(root / name, text)
    for column, values in {
        "loss": [4.9, 4.1, 3.7, 3.5, 3.4, 3.35],
        "eval_loss": [4.85, 3.9, 3.62, 3.55, 3.52, 3.53],
        "learning_rate": [0.001, 0.004, 0.003, 0.002, 0.001, 0.0],
    }.items():
        rows = [f"{10 * step}\t{value}" for step, value in enumerate(values)]
        io.write_text(root / f"eval/train/plots/metrics/{column}.tsv", "\n".join([f"step\t{column}", *rows]) + "\n")


def recipes(params: Params) -> dict[str, str]:
    """Return path -> text of every recipe that params name, and of a policy that they do not."""
    saves = {"snapkv": "prefill: {}\n", "recent_only": "online: true\n", "spare": "narrow: {}\n"}
    named = {
        "models": [params.model],
        "accelerate": [params.train.accelerate],
        "quantize": params.quantize.encodings,
        "scorers": [params.evaluate.scorer],
        "kv": [*params.bench.policies, "spare"],
    }
    return {
        f"recipes/{kind}/{name}.yaml": f"paper: The paper of {name} (2024)\n" + saves.get(name, PUBLISHED)
        for kind, names in named.items()
        for name in names
    }


def documents(params: Params) -> dict[str, Any]:
    """Return path -> content of every JSON that the report reads."""
    encodings = params.quantize.encodings
    stages = ["download", "base", "convert", "train", "merge", *(f"quantize@{name}" for name in encodings)]
    stages += [f"evaluate@{name}" for name in ("base", "merged", *encodings)]
    stages += [f"bench@{name}" for name in params.bench.encodings]
    return {
        "data/chat/summary.json": chat(),
        "eval/train/summary.json": train(),
        "eval/merge.json": merge(),
        **{f"eval/quantize/{name}.json": quantized(name) for name in encodings},
        **{f"eval/quality/{name}.json": quality(name) for name in ("base", "merged", *encodings)},
        **{f"eval/bench/{name}.json": bench(name, params) for name in params.bench.encodings},
        **{f"eval/timings/{name}.json": timing(name, index) for index, name in enumerate(stages)},
    }


def timing(name: str, index: int) -> dict:
    """Return eval/timings/<name>.json."""
    rates = {"train": {"tokens_per_second": 1313}, "evaluate": {"generation_tokens_per_second": 300.0 + 100 * index}}
    spent = {"seconds": 1.5 + 7 * index, "peak_rss_bytes": 100_000_000 * (index + 1)}
    return spent | rates.get(name.split("@")[0], {})


def chat() -> dict:
    """Return data/chat/summary.json."""
    tokens = {"total": 120_000, "p50": 96, "p100": 1011}
    split = {"turns": 1200, "multi_turn_share": 0.18, "tokens": tokens}
    return {
        "source": {
            "source": "embedded",
            "name": "PeakChat sample dialogues (synthetic)",
            "license": "same as this repository",
        },
        "lines": 1230,
        "kept": 1210,
        "dropped": {"malformed": 3, "over_long": 7, "near_duplicate": 10, "empty_turn": 0},
        "splits": {
            "train": {"dialogues": 910, **split},
            "validation": {"dialogues": 100, **split},
            "test": {"dialogues": 200, **split},
        },
        "overlap": {"train_validation": 0, "train_test": 0, "validation_test": 0},
        "test_questions_in_train": 0,
    }


def train() -> dict:
    """Return eval/train/summary.json."""
    losses = {"first": 4.85, "last": 3.53, "best": 3.52}
    return {
        "steps": 50,
        "epochs": 2.0,
        "stopped_early": False,
        "best_step": 40,
        "tokens_trained": 240_000,
        "trainable_parameters": 524_288,
        "eval_loss": {name: measure(loss, n=9000, unit="nats/token", better="lower") for name, loss in losses.items()},
    }


def merge() -> dict:
    """Return eval/merge.json."""
    found = {
        "max_logit_diff": measure(0.078, n=900, better="lower"),
        "kld": measure(2.1e-5, stderr=1e-6, n=900, unit="nats/token", better="lower"),
    }
    return {"dtype": "bfloat16", "dialogues": 16, "tokens": 900, "in_memory": found, "reloaded": found}


def quantized(name: str) -> dict:
    """Return eval/quantize/<name>.json."""
    family, size, bits, divergence, _ = COSTS[name]
    file = f"PeakChat-8M-MedChatZH-{name}.gguf" if family == "gguf" else "model.safetensors"
    return {
        "encoding": name,
        "family": family,
        "summary": "an encoding",
        "base": "PeakChat-8M",
        "parameters": 7_900_000,
        "files": [{"name": file, "bytes": size, "sha256": "0123456789abcdef" * 4}],
        "bits_per_weight": measure(bits, unit="bits", better="lower"),
        "tensor_types": {"F32": 33, "Q4_K": 50, "Q6_K": 7},
        "fallbacks": [],
        "parity": {"dialogues": 32, "mismatches": measure(0, n=32)},
        "logits": {"max_diff": measure(0.002 + 20 * divergence), "argmax_agreement": measure(1 - divergence)},
    }


def quality(name: str) -> dict:
    """Return eval/quality/<name>.json."""
    divergence, same = {"base": (0.92, 0.31), "merged": (0.0, 1.0)}.get(name) or COSTS[name][3:]
    score = 0.52 if name == "base" else 0.64 - divergence / 10
    ids = [f"test-{index:03d}" for index in range(40)]
    step = 3 if name == "base" else 7
    scores = [score + 0.05 * ((step * index) % 11 - 5) / 5 for index in range(40)]
    perplexity = 107.4 if name == "base" else 35.4 * (1 + divergence / 2)
    size = 16_400_000 if name in ("base", "merged") else COSTS[name][1]
    return {
        "cell": name,
        "engine": "llama.cpp" if COSTS.get(name, ("",))[0] == "gguf" else "transformers",
        "artifact": f"artifacts/{name}",
        "scorer": {"name": "nano-bert", "layer": 4},
        "size_bytes": measure(size, unit="bytes", better="lower"),
        "metrics": {
            "bert_f1": measure(score, ci95=(score - 0.01, score + 0.01), n=40, better="higher"),
            "bert_f1_rescaled": measure(score / 2, n=40, better="higher"),
            "bert_f1_shuffled": measure(0.478, n=40, better="lower"),
            "perplexity": measure(perplexity, stderr=perplexity / 60, n=5000, better="lower"),
            "bits_per_char": measure(3.2 if name == "base" else 2.51 + divergence, better="lower"),
            "kld": measure(divergence, stderr=divergence / 30, n=5000, unit="nats/token", better="lower"),
            "same_top": measure(same, stderr=0.004, n=5000, better="higher"),
            "ended": measure(0.02 if name == "base" else 0.97, n=40, better="higher"),
            "answer_chars": measure(61.0, n=40),
        },
        "per_dialogue": {"ids": ids, "bert_f1": scores},
        "samples": [
            {
                "id": ids[index],
                "prompt": prompt,
                "reference": answer,
                "answer": answer[:-1] + TAILS.get(name, "") + "。",
            }
            for index, (prompt, answer) in enumerate(SAMPLES)
        ],
    }


def bench(name: str, params: Params) -> dict:
    """Return eval/bench/<name>.json."""
    return {
        "encoding": name,
        "machine": MACHINE,
        "settings": {"slack": 32, "documents": "test dialogues joined"},
        "rows": [
            row(policy, depth) | ({"recall": recall(policy)} if depth == max(params.bench.depths) else {})
            for depth in params.bench.depths
            for policy in params.bench.policies
        ],
        "answers": [
            answered(name, policy, params.bench.answers.budget) for policy in ("full", *params.bench.answers.policies)
        ],
    }


def answered(name: str, policy: str, budget: int) -> dict:
    """Return the answers of an encoding to the samples under one policy."""
    kept, evicted = (96, 0) if policy == "full" else (budget + 8, 88 - budget)
    return {
        "policy": policy,
        "budget": None if policy == "full" else budget,
        "answers": [
            {
                "id": one["id"],
                "answer": one["answer"][:-1] + FORGOTTEN.get(policy, "") + "。",
                "entries": measure(float(kept), unit="entries"),
                "evicted": measure(float(evicted), unit="entries"),
            }
            for one in quality(name)["samples"]
        ],
    }


def recall(policy: str) -> dict:
    """Return the recall of a row at the greatest depth; needles are a little easier."""
    sights = [(sight, right) for sight, right in zip(("seen", "unseen"), RECALL[policy], strict=True) if right]
    return {
        kind: {
            sight: measure(
                (right + more) / 20, ci95=((right - 1) / 20, (right + 2) / 20), n=20, unit="share", better="higher"
            )
            for sight, right in sights
        }
        for kind, more in (("pairs", 0), ("needles", 1))
    }


def row(policy: str, depth: int) -> dict:
    """Return one row of eval/bench/<name>.json."""
    share, width, perplexity, divergence, milliseconds = POLICIES[policy]
    entries = round(share * depth)
    slower = milliseconds * (0.8 + depth / 5000)
    return {
        "policy": policy,
        "composition": "everything | never" if share == 1 else "recent(rest of budget) | over(budget)",
        "depth": depth,
        "budget": 256 if share < 1 else None,
        "entries": measure(float(entries), unit="entries"),
        "kv_bytes_peak": width * (depth if policy == "recent_only" else entries),
        "kv_bytes_final": width * entries,
        "quality": {
            "perplexity": measure(perplexity, stderr=0.4),
            "same_top": measure(1 - divergence / 2),
            "kld": measure(divergence),
        },
        "timing": {
            "flash_attention": "on",
            "ttft_s": measure(depth / 6000, stderr=0.004),
            "tpot_ms_median": measure(slower),
            "tpot_ms_p95": measure(slower * 1.2),
            "tokens_per_second": measure(1000 / slower, stderr=3.0),
            "ratio_to_full": measure(4.10 / milliseconds),
        },
        "kept": [[share] * 3 + [1.0]] * 2,
    }


def speed() -> dict:
    """Return eval/bench/speed.json."""

    def decoded(policy: str, milliseconds: float, ratio: float) -> dict:
        return {
            "figure": "decode",
            "encoding": "Q4_0",
            "policy": policy,
            "depth": 8192,
            "flash_attention": "off",
            "tpot_ms_median": measure(milliseconds, n=165, unit="ms", better="lower"),
            "ratio_to_full": measure(ratio, unit="x full KV", better="higher"),
            "kv_bytes": measure(58_720_256, unit="bytes"),
        }

    slow = {"what": "step of h2o_online", "value": measure(19.5, unit="%"), "bound": 12.0, "holds": False}
    return {
        "model": {"Q4_0": "Shape-random-Q4_0.gguf"},
        "machine": MACHINE,
        "rows": [decoded("full", 98.0, 1.0), decoded("snapkv", 29.5, 3.32)],
        "bounds": [slow],
    }
