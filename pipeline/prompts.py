"""Messages to prompt text and token ids: the one owner of the chat format for train, evaluate, bench and the exports.

The format is Qwen3's with thinking off (``enable_thinking=False``), baked into ``prompts.jinja``. A message is
``{"role": "system" | "user" | "assistant", "content": str}``. Prompt and answer are tokenised apart, so that the
boundary between them is the same in training, where the answer is known, and in use, where it is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (START_OF_TURN, END_OF_TURN)
ZERO_WIDTH_SPACE = "\u200b"
UNREADABLE = "\ufffd"  # what decoders put for bytes that are no character
_THOUGHTS = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n")

Message = dict[str, str]


def template() -> str:
    """Return the chat template, in Jinja, as every exported model carries it."""
    return Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8").rstrip("\n")


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory with our chat template in place of its own.

    Raises UserError if the directory holds no tokenizer, or one without Qwen3's turn markers.
    """
    from transformers import AutoTokenizer

    if not any((Path(directory) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{directory}: no tokenizer (neither tokenizer.json nor vocab.json); "
            "take a complete model directory, as `save_pretrained` of model and tokenizer writes it"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    missing = [token for token in CONTROL_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        raise UserError(
            f"{directory}: the tokenizer lacks {', '.join(missing)}; the chat format needs a Qwen3 tokenizer"
        )
    tokenizer.chat_template = template()
    return tokenizer


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends an answer."""
    return tokenizer.convert_tokens_to_ids(END_OF_TURN)


def defuse(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return ``text`` with every literal control token broken by a zero-width space, so that it stays text.

    It is normalised to NFC as well: Qwen's tokenizer does so, llama.cpp's does not.
    """
    text = unicodedata.normalize("NFC", text)
    return _control_tokens(tokenizer).sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text)


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in added))


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Render messages up to the point where the assistant's next answer begins."""
    return _rendered(tokenizer, messages, open_answer=True)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], open_answer: bool) -> str:
    safe = [{"role": message["role"], "content": defuse(tokenizer, message["content"])} for message in messages]
    return tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=open_answer)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of :func:`prompt_text`."""
    return _ids(tokenizer, prompt_text(tokenizer, messages))


def history_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of messages up to a user's, without the opening of the answer to it.

    Control tokens bound every message, so that a conversation may be rendered in parts that each end with a user's
    message: their ids, joined and followed by :func:`opening_ids`, are the whole's :func:`prompt_ids`.
    """
    return _ids(tokenizer, _rendered(tokenizer, messages, open_answer=False))


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that open an answer, the empty think block included."""
    asked = [{"role": "user", "content": ""}]
    return prompt_ids(tokenizer, asked)[len(history_ids(tokenizer, asked)) :]


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Return the token ids of an assistant's answer, closed by the end of turn."""
    return [*_ids(tokenizer, defuse(tokenizer, answer)), end_of_turn_id(tokenizer)]


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return an answer's text without its thoughts; ``ids`` end before the end of turn."""
    return _THOUGHTS.sub("", tokenizer.decode(ids)).partition("<think>")[0].strip()


def transcript(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return a stretch of a chat as plain text: a line a turn, its role before it; broken characters are left out."""
    text = _TURN.sub(r"\1: ", _THOUGHTS.sub("", tokenizer.decode(ids)))
    for mark in (*CONTROL_TOKENS, "<think>", "</think>", UNREADABLE):  # of turns and thoughts that begin or end outside
        text = text.replace(mark, "")
    return text.strip()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of plain text."""
    return _ids(tokenizer, defuse(tokenizer, text))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose would warn of texts beyond the model's length, which the callers count and drop
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def example_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return (prompt ids, answer ids) of a dialogue whose last message is the assistant's."""
    return prompt_ids(tokenizer, messages[:-1]), answer_ids(tokenizer, messages[-1]["content"])


def turns(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield the dialogue up to each assistant turn.

    Qwen3 shows its think block on the newest assistant turn alone, so each answer is learned in the very context
    in which it will be generated, not as history.
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield messages[: index + 1]
