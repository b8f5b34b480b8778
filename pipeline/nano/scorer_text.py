"""The scorer's texts: the corpus as (question, answer) pairs, related views to train on, rewritings to prove it on.

What training shows and what the proof asks are made in different ways: a view crops and drops characters, a
rewriting swaps synonyms, reorders and leaves out clauses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from pipeline.errors import UserError
from pipeline.nano import corpus

CLAUSE = re.compile(r"[^，。！？；：,.!?;:\n]+[，。！？；：,.!?;:\n]*")
BATCHES_SORTED = 8  # by length together
SHORTEST = 12  # characters of an answer worth a pair
SYNONYMS = """
    建议/推荐 注意/留意 避免/不要 医生/大夫 检查/查一查 治疗/医治 服用/吃 饮食/吃饭方面 休息/歇息 可以/能够 需要/要
    及时/尽快 出现/有 引起/造成 导致/使得 疾病/病 患者/病人 症状/表现 情况/状况 比较/较为 容易/易 平时/平常 经常/时常
    保持/维持 增强/提高 锻炼/运动 严重/厉害 或者/或 以及/和 如果/要是 因为/由于 所以/因此 但是/不过 必须/一定要
    药物/药 疼痛/痛 发热/发烧 感冒/伤风 失眠/睡不着 腹泻/拉肚子 清淡/不油腻 辛辣/刺激 按时/准时 就诊/看病
    减少/降低 适当/适度 一般/通常 主要/主要是 您好/你好 方法/办法 效果/疗效 控制/管住 多喝水/多饮水
"""
CONDITIONS = """
    高血压 糖尿病 冠心病 感冒 肺炎 哮喘 支气管炎 胃炎 胃溃疡 乙肝 脂肪肝 肝硬化 胆囊炎 胆结石 肠炎 便秘 痔疮 肾炎 肾结石
    尿路感染 前列腺炎 痛风 关节炎 颈椎病 腰椎间盘突出 骨折 贫血 甲亢 甲状腺结节 失眠 抑郁 头痛 脑梗 癫痫 鼻炎 咽炎
    结膜炎 白内障 湿疹 荨麻疹 痤疮 白癜风 银屑病 脚气 月经 痛经 阴道炎 盆腔炎 不孕 早泄 阳痿 口腔溃疡 牙周炎
    中耳炎 子宫肌瘤 心律失常 心绞痛 咳嗽 腹泻 更年期 乳腺增生
"""
Pair = tuple[str, str]


def pairs(folder: Path, files: Sequence[str]) -> list[Pair]:
    """Return the (question, answer) pairs of all dialogues, each answer once."""
    seen = {}
    for file in files:
        for dialogue in corpus.dialogues(_existing(folder / file)):
            turns = [message["content"] for message in dialogue["messages"]]
            seen |= {answer: question for question, answer in zip(turns[0::2], turns[1::2], strict=False)}
    return [(question, answer) for answer, question in seen.items() if len(answer) >= SHORTEST]


def classics(folder: Path, files: Sequence[str]) -> list[str]:
    """Return passages of the classics."""
    return [passage["text"] for file in files for passage in corpus.classics(_existing(folder / file))]


def split(pairs: Sequence[Pair], held_out_percent: int) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Return (train, validation, test) by a hash of the question: one question is in one of them only."""
    train, validation, test = [], [], []
    for question, answer in pairs:
        held_out = corpus.is_held_out(question, held_out_percent)
        part = (test if corpus.is_held_out("test" + question, 50) else validation) if held_out else train
        part.append((question, answer))
    return train, validation, test


def related(question: str, answer: str, rng: Random) -> Pair:
    """Return two texts that belong together: views of the answer, its halves, or the question and the answer."""
    draw = rng.random()
    if question and draw < 0.2:
        return question, view(answer, rng)
    parts = clauses(answer)
    if len(parts) >= 4 and draw < 0.4:
        cut = rng.randrange(len(parts) // 3, len(parts) - len(parts) // 3)
        return "".join(parts[:cut]), "".join(parts[cut:])
    return view(answer, rng), view(answer, rng)


def view(text: str, rng: Random) -> str:
    """Return a run of at least half of the text's clauses, with up to a quarter of the characters dropped."""
    parts = clauses(text)
    length = rng.randint((len(parts) + 1) // 2, len(parts))
    start = rng.randint(0, len(parts) - length)
    return delete_words("".join(parts[start : start + length]), rng.uniform(0, 0.25), rng)


def delete_words(text: str, share: float, rng: Random) -> str:
    """Return text without about ``share`` of its two-character words, and never empty."""
    words = [text[i : i + 2] for i in range(0, len(text), 2)]
    dropped = set(rng.sample(range(len(words)), min(round(share * len(words)), len(words) - 1)))
    return "".join(word for index, word in enumerate(words) if index not in dropped)


def rewritten(text: str, rng: Random) -> str:
    """Return a light paraphrase: synonyms swapped, a fifth of the clauses left out, neighbouring clauses exchanged."""
    parts = clauses(text)
    kept = [part for part in parts if rng.random() > 0.2] or parts
    for index in range(0, len(kept) - 1, 2):
        if rng.random() < 0.5:
            kept[index], kept[index + 1] = kept[index + 1], kept[index]
    synonyms = dict(pair.split("/") for pair in SYNONYMS.split())
    return re.sub("|".join(synonyms), lambda match: synonyms[match[0]], "".join(kept))


def halves(text: str) -> Pair:
    """Return the first and the second half of a text, cut between clauses where it has several."""
    parts = clauses(text) if len(clauses(text)) > 1 else list(text)
    return "".join(parts[: len(parts) // 2]), "".join(parts[len(parts) // 2 :])


def condition(question: str) -> str | None:
    """Return the one condition of ``CONDITIONS`` that a question names, or None."""
    named = [condition for condition in CONDITIONS.split() if condition in question]
    return named[0] if len(named) == 1 else None


def clauses(text: str) -> list[str]:
    """Return the clauses of a text, each with the punctuation that ends it."""
    return CLAUSE.findall(text) or [text]


def batches(pool: Sequence[Pair], size: int, rng: Random) -> Iterator[list[Pair]]:
    """Yield endless batches of related texts, like lengths together, the pool shuffled anew in each pass."""
    order = list(range(len(pool)))
    size = min(size, len(pool))
    while True:
        rng.shuffle(order)
        for start in range(0, len(order), size * BATCHES_SORTED):
            pairs = [related(*pool[index], rng) for index in order[start : start + size * BATCHES_SORTED]]
            pairs.sort(key=lambda pair: max(map(len, pair)))
            chunks = [pairs[i : i + size] for i in range(0, len(pairs) - size + 1, size)]
            yield from rng.sample(chunks, len(chunks))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; pass its folder as --corpus, or mend pipeline/nano/scorer.yaml")
    return path
