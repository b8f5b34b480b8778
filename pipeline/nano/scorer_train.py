"""The scorer's tokenizer and training: restore masked characters, and tell related texts from unrelated by BERT-F1.

The second task trains the very quantity that is scored: greedy matching of token vectors (Zhang et al., 2020) as the
similarity in an InfoNCE loss (van den Oord et al., 2018), as late-interaction retrieval does (Khattab and Zaharia,
2020). Positions start at a random offset, so that all of them are trained though the texts are short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast, PreTrainedTokenizerBase

from pipeline.runtime import cpu_has_bf16

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RAREST = 2  # times a character must stand in the corpus, unless GB 2312 has it
LOGGED_STEPS = 25
WINDOW = 4  # neighbours on either side that count as company of a character
MASK_TOKEN, RANDOM_TOKEN = 0.8, 0.9  # cumulative shares of the tokens to restore (Devlin et al., 2019)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Return the tokens: specials, the characters of GB 2312 and of the corpus, and pieces of what is not Chinese."""
    counts = Counter(character for text in texts for character in text.lower() if not character.isspace())
    rows = (bytes([row, cell]) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    standard = {code.decode("gb2312", errors="ignore").lower() for code in rows} - {"", "\u3000"}
    ascii_ = {chr(code).lower() for code in range(33, 127)}
    known = sorted(standard | ascii_ | {character for character, count in counts.items() if count >= RAREST})
    pieces = ["##" + character for character in known if not "\u3400" <= character <= "\u9fff"]
    return SPECIAL + known + pieces


def tokenizer(tokens: Sequence[str], length: int) -> PreTrainedTokenizerBase:
    """Return a BERT tokenizer over ``tokens``: lower case, one token for each Chinese character."""
    from tokenizers import BertWordPieceTokenizer

    vocab = {token: index for index, token in enumerate(tokens)}
    pieces = BertWordPieceTokenizer(vocab=vocab, handle_chinese_chars=True, lowercase=True)
    return BertTokenizerFast(tokenizer_object=pieces._tokenizer, model_max_length=length)


def cooccurrence_embedding(texts: Iterable[str], words: PreTrainedTokenizerBase, width: int) -> torch.Tensor:
    """Return token vectors [vocabulary, width] to start from: positive pointwise mutual information of neighbours,
    factored by a truncated singular value decomposition (Levy and Goldberg, 2014).
    """
    size, counts = len(words), torch.zeros(len(words) ** 2)
    for encoded in words(list(texts), add_special_tokens=False, truncation=True)["input_ids"]:
        ids = torch.tensor(encoded)
        for distance in range(1, WINDOW + 1):
            counts.index_add_(0, ids[:-distance] * size + ids[distance:], torch.ones(max(len(ids) - distance, 0)))
    counts = counts.view(size, size)
    counts += counts.T.clone()
    total = counts.sum(1).clamp(min=1)
    information = (counts * counts.sum() / total[:, None] / total[None]).clamp(min=1).log()
    left, values, _ = torch.svd_lowrank(information, q=width, niter=2)
    vectors = left * values.sqrt()
    return vectors * (0.02 / vectors.std())


def new_model(architecture: dict, words: PreTrainedTokenizerBase, texts: Sequence[str]) -> BertForMaskedLM:
    """Return an untrained model whose token vectors start from the company that characters keep in ``texts``."""
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), pad_token_id=words.pad_token_id, **architecture))
    embedding = model.bert.embeddings.word_embeddings.weight
    embedding.data.copy_(cooccurrence_embedding(texts, words, embedding.shape[1]))
    return model


def save(encoder: BertModel, words: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights in float16 under a config that loads them as float32, and the tokenizer.

    BertModel expects a pooler, which BERTScore never uses: it is written as zeros.
    """
    whole = BertModel(encoder.config)
    whole.load_state_dict(encoder.state_dict(), strict=False)
    for parameter in whole.pooler.parameters():
        torch.nn.init.zeros_(parameter)
    whole.to(torch.float16).save_pretrained(directory)
    whole.config.dtype = torch.float32
    whole.config.save_pretrained(directory)
    words.save_pretrained(directory)


def train(model: BertForMaskedLM, words: PreTrainedTokenizerBase, batches: Iterator, settings) -> Iterator[dict]:
    """Train in place on batches of text pairs; yield the loss curve. ``settings`` is the recipe's ``train``.

    Lengths are rounded up to a multiple of 32: oneDNN compiles and keeps a kernel for every new shape.
    """
    optimisers = _optimisers(model, settings)
    curve = []
    progress = tqdm(range(1, settings.steps + 1), desc="scorer", disable=None)
    for step in progress:
        texts = [text for side in zip(*next(batches), strict=True) for text in side]
        shape = {"max_length": settings.tokens, "pad_to_multiple_of": 32}
        encoded = words(texts, truncation=True, padding=True, return_tensors="pt", **shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            restoring, matching, first = losses(model, encoded, words, settings)
        (restoring + settings.contrast_weight * matching).backward()
        _step(optimisers, step, settings)
        curve.append((restoring.item(), matching.item(), first))
        if step % LOGGED_STEPS == 0:
            averages = [round(sum(column) / LOGGED_STEPS, 4) for column in zip(*curve[-LOGGED_STEPS:], strict=True)]
            point = dict(zip(("masked_loss", "contrast_loss", "ranked_first"), averages, strict=True))
            progress.set_postfix(point)
            yield {"step": step, **point}


def losses(model, encoded, words, settings) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the loss of the masked tokens, that of the pairs, and the share of pairs ranked first."""
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    content = (ids != words.cls_token_id) & (ids != words.sep_token_id) & mask.bool()
    shown, chosen = masked(ids, content, words, settings.masked)
    offset = torch.randint(0, model.config.max_position_embeddings - ids.shape[1] + 1, (1,))
    states = model.bert(
        shown, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None] + offset, output_hidden_states=True
    ).hidden_states
    restoring = F.cross_entropy(model.cls(states[-1][chosen]).float(), ids[chosen])
    left, right = states[settings.contrast_layer].chunk(2)
    scores = match(left, right, *mask.chunk(2), *content.chunk(2)) / settings.temperature
    target = torch.arange(len(scores))
    matching = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    return restoring, matching, (scores.argmax(dim=1) == target).float().mean().item()


def masked(ids, content, words, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids as the model sees them and the bool mask of the tokens it is to restore."""
    chosen = content & (torch.rand(ids.shape) < share)
    draw = torch.rand(ids.shape)
    shown = torch.where(chosen & (draw < MASK_TOKEN), words.mask_token_id, ids)
    noise = torch.randint(len(SPECIAL), len(words), ids.shape)
    return torch.where(chosen & (draw >= MASK_TOKEN) & (draw < RANDOM_TOKEN), noise, shown), chosen


def match(left, right, left_mask, right_mask, left_content, right_content) -> torch.Tensor:
    """Return BERT-F1 of every left text against every right one, [left, right], from states [texts, tokens, width].

    As in bert-score, the first and last token may be matched but are not averaged.
    """
    left = F.normalize(left.float(), dim=-1) * left_mask[..., None]
    right = F.normalize(right.float(), dim=-1) * right_mask[..., None]
    similarity = (left.flatten(0, 1) @ right.flatten(0, 1).T).view(*left.shape[:2], *right.shape[:2])
    weights = left_content / left_content.sum(1, keepdim=True)
    precision = (similarity.max(3).values.transpose(1, 2) * weights[:, None]).sum(2)
    weights = right_content / right_content.sum(1, keepdim=True)
    recall = (similarity.max(1).values * weights[None]).sum(2)
    return 2 * precision * recall / (precision + recall)


def _optimisers(model, settings) -> list[tuple[torch.optim.Optimizer, float]]:
    matrices = [p for p in model.bert.encoder.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=settings.muon, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=settings.adamw, weight_decay=0.01)
    return [(muon, settings.muon), (adamw, settings.adamw)]


def _step(optimisers, step: int, settings) -> None:
    """Update with the learning rate of the step: linear warm-up, then linear to 0."""
    factor = min(step / settings.warmup, (settings.steps + 1 - step) / (settings.steps - settings.warmup))
    torch.nn.utils.clip_grad_norm_(list(chain(*(g["params"] for o, _ in optimisers for g in o.param_groups))), 1.0)
    for optimiser, rate in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        optimiser.step()
        optimiser.zero_grad()
