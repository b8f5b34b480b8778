"""The metrics as ``evaluate.Metric`` objects, made directly: nothing is looked up on the hub.

Each is fed dialogue by dialogue with ``add`` and answers with ``compute``; its formulas are the pure functions of
the file with its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import evaluate

from pipeline.metrics import bert_f1, divergence, perplexity

if TYPE_CHECKING:
    from bert_score import BERTScorer

BERTSCORE = """@inproceedings{zhang2020bertscore,
  title={BERTScore: Evaluating Text Generation with BERT},
  author={Zhang, Tianyi and Kishore, Varsha and Wu, Felix and Weinberger, Kilian Q. and Artzi, Yoav},
  booktitle={International Conference on Learning Representations}, year={2020}}"""


class BertF1(evaluate.Metric):
    """BERT-F1 of answers: raw, rescaled by the scorer's baseline, and the floor of shuffled references."""

    def __init__(self, scorer: BERTScorer, baseline: float, seed: int, **kwargs: Any):
        self.scorer, self.baseline, self.bootstrap_seed = scorer, baseline, seed
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return _info("BERT-F1 of generated answers", {"predictions": text, "references": text}, BERTSCORE)

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        f1 = bert_f1.scores(self.scorer, predictions, references).round(4)
        return {
            **bert_f1.measures(f1, self.baseline, self.bootstrap_seed),
            "bert_f1_shuffled": bert_f1.shuffled(self.scorer, predictions, references, self.bootstrap_seed),
            "per_dialogue": f1.tolist(),
        }


class Perplexity(evaluate.Metric):
    """Perplexity and bits a character from the negative log-likelihoods of reference tokens."""

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        nlls = datasets.Sequence(datasets.Value("float64"))
        return _info("Perplexity of reference answers", {"nlls": nlls, "characters": datasets.Value("int64")})

    def _compute(self, nlls: list[list[float]], characters: list[int]) -> dict:
        return {
            "perplexity": perplexity.perplexity(nlls),
            "bits_per_char": perplexity.bits_per_char(nlls, characters),
        }


class Divergence(evaluate.Metric):
    """KL divergence from, and same top token as, a reference model on the same token ids."""

    def __init__(self, **kwargs: Any):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        klds, same = datasets.Sequence(datasets.Value("float64")), datasets.Sequence(datasets.Value("bool"))
        return _info("Divergence of next-token distributions", {"klds": klds, "same": same})

    def _compute(self, klds: list[list[float]], same: list[list[bool]]) -> dict:
        return {"kld": divergence.mean_kld(klds), "same_top": divergence.mean_same_top(same)}


def _info(description: str, features: dict, citation: str = "") -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation=citation, inputs_description="", features=datasets.Features(features)
    )
