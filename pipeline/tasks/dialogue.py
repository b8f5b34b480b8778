"""Dialogue recall: facts told in the first turns of a long conversation, each asked for in a last turn of its own.

The conversation is made of test dialogues, one after another, in the chat format. In the first user turns the patient
also tells facts, whose names, values and phrasings are those kept out of the training of the embedded base (facts.py).
The last user turn of a task asks for one of them; the assistant's answer is opened for the model, whose next tokens are
the value or not. The same arguments give the same tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.prompts import Message
from pipeline.tasks import facts
from pipeline.tasks.facts import Fact
from pipeline.tasks.pools import pools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FACTS = 3  # user turns that tell one, the first of the conversation
EARLY = 0.5  # the dialogues that tell them begin in this first part of it
DRAWN = 64  # dialogues tried for a conversation
ANSWER_TOKENS = 24
OPENING = "{person}的{field}："
FULL_STOP = "。"
ANOTHER: Message = {
    "role": "user",
    "content": FULL_STOP,
}  # a last turn is rendered otherwise than one that others follow


@dataclass(frozen=True)
class DialogueTask:
    """One question: feed ``prompt_ids``, take greedy tokens until ``stop`` or ``tokens`` of them, compare.

    All before ``question_at`` is the conversation, which the tasks of other facts share.
    """

    prompt_ids: tuple[int, ...]
    question_at: int  # prompt position where the last user turn begins
    opening: str  # the prompt's end: how the answer begins
    answer: str
    answer_ids: tuple[int, ...]
    stop: int
    tokens: int = ANSWER_TOKENS

    @property
    def reference(self) -> str:
        """The sentence that would answer the question."""
        return self.opening + self.answer + FULL_STOP


def conversations(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], depth: int, n: int, seed: int
) -> list[list[DialogueTask]]:
    """Return for each of ``n`` conversations a task for every fact told in it.

    Prompts are at most ``depth`` tokens long, and as long as whole dialogues make them. Raises UserError if no
    dialogue with a fact fits.
    """
    return [_tasks(tokenizer, dialogues, depth, Random(f"{seed}/dialogue/{depth}/{i}")) for i in range(n)]


def sentence(task: DialogueTask, text: str) -> str:
    """Return the first sentence of an answer whose generated part is ``text``."""
    first, stop, _ = text.partition(FULL_STOP)
    return task.opening + first + stop


def _tasks(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], depth: int, rng: Random
) -> list[DialogueTask]:
    used: set[str] = set()
    known = [facts.fact(rng, list(facts.FIELDS), True, used) for _ in range(FACTS)]
    pattern = rng.choice(pools().test.questions).partition("\n")[0]
    room = depth - max(len(_asked(tokenizer, [], pattern, fact)[0]) for fact in known)
    drawn = rng.sample(dialogues, min(len(dialogues), DRAWN))
    told, conversation = _conversation(tokenizer, drawn, known, room, rng)
    if not told:
        raise UserError(
            f"dialogue depth {depth}: too short for a test dialogue that tells a fact, with this tokenizer; raise "
            "bench.depths, or set bench.conversations to 0"
        )
    return [_task(tokenizer, conversation, pattern, fact) for fact in told]


def _task(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], pattern: str, fact: Fact
) -> DialogueTask:
    prompt, question_at = _asked(tokenizer, conversation, pattern, fact)
    return DialogueTask(
        prompt_ids=tuple(prompt),
        question_at=question_at,
        opening=_opening(fact),
        answer=fact.value,
        answer_ids=tuple(_encode(tokenizer, fact.value)),
        stop=prompts.end_of_turn_id(tokenizer),
    )


def _conversation(
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Sequence[Message]],
    known: Sequence[Fact],
    room: int,
    rng: Random,
) -> tuple[list[Fact], list[Message]]:
    """Return the facts told, and dialogues joined as long as they fit, each either whole or not at all."""
    told: list[Fact] = []
    conversation: list[Message] = []
    length, another = 0, len(prompts.prompt_ids(tokenizer, [ANOTHER]))
    for dialogue in dialogues:
        coming = known[len(told) : len(told) + len(dialogue) // 2] if length < EARLY * room else []
        messages = _telling(dialogue, coming, rng)
        size = len(prompts.prompt_ids(tokenizer, [*messages, ANOTHER])) - another
        if length + size <= room:
            length += size
            told += coming
            conversation += messages
    return told, conversation


def _telling(dialogue: Sequence[Message], coming: Sequence[Fact], rng: Random) -> list[Message]:
    """Return a dialogue whose first user turns begin with a fact each."""
    lines = iter([facts.state(rng.choice(pools().test.facts), fact) + "\n" for fact in coming])
    return [
        {**message, "content": next(lines, "") + message["content"]} if message["role"] == "user" else message
        for message in dialogue
    ]


def _asked(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], pattern: str, fact: Fact
) -> tuple[list[int], int]:
    """Return the ids of a conversation that ends with a question and its opened answer, and where the question is."""
    question = {"role": "user", "content": facts.ask(pattern, fact)}
    asking = prompts.prompt_ids(tokenizer, [*conversation, question])
    turn = tokenizer.convert_tokens_to_ids(prompts.CONTROL_TOKENS[0])
    user_turn = [at for at, token in enumerate(asking) if token == turn][-2]  # the last one is the assistant's
    return [*asking, *_encode(tokenizer, _opening(fact))], user_turn


def _opening(fact: Fact) -> str:
    return OPENING.format(person=fact.person, field=fact.field)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
