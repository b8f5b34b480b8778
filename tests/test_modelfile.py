"""Ollama's Modelfile: its template spells the chat format of prompts.py, whatever the dialogue."""

from __future__ import annotations

import pytest

from pipeline import prompts
from pipeline.quant import modelfile

LOOP, END = "{{- range .Messages }}", "{{ end }}"
DIALOGUES = {
    "one turn": [{"role": "user", "content": "咳嗽三天了怎么办？"}],
    "two turns": [
        {"role": "user", "content": "失眠怎么办？"},
        {"role": "assistant", "content": "规律作息。"},
        {"role": "user", "content": "还需要吃药吗？\n\n  {{ .Role }}"},
    ],
    "system": [{"role": "system", "content": "你是医生。"}, {"role": "user", "content": "头痛"}],
}


@pytest.mark.parametrize("messages", DIALOGUES.values(), ids=DIALOGUES)
def test_the_template_spells_the_chat_format(messages, tokenizer):
    body, opening = modelfile.template().removeprefix(LOOP).split(END)
    before, rest = body.split("{{ .Role }}")
    between, after = rest.split("{{ .Content }}")
    turns = "".join(before + message["role"] + between + message["content"] + after for message in messages)
    assert turns + opening == prompts.prompt_text(tokenizer, messages)


def test_the_loop_is_all_that_acts():
    template = modelfile.template()
    assert template.startswith(LOOP)
    assert [part.split("}}")[0] for part in template.split("{{")[1:]] == [
        "- range .Messages ",
        " .Role ",
        " .Content ",
        " end ",
    ]


def test_the_file_names_its_gguf_and_where_an_answer_ends():
    lines = modelfile.text("PeakChat-8M-Q4_0.gguf").splitlines()
    assert "FROM ./PeakChat-8M-Q4_0.gguf" in lines
    assert f'PARAMETER stop "{prompts.END_OF_TURN}"' in lines
    assert modelfile.text("x.gguf").count('"""') == 2
