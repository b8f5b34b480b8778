"""A GGUF's name to Ollama's Modelfile: the same chat format as prompts.py, written in Go's template language."""

from __future__ import annotations

import json

from pipeline import prompts

NAME = "Modelfile"
TURN = {"role": "{{ .Role }}", "content": "{{ .Content }}"}  # what Ollama puts in place of one message
MODELFILE = '''# ollama create NAME -f Modelfile
# Written from this model's chat template; it was not run with Ollama here.
FROM ./{file}
TEMPLATE """{template}"""
PARAMETER stop {stop}
PARAMETER temperature 0
'''


def text(file: str) -> str:
    """Return the Modelfile of a GGUF that lies beside it; answers are greedy, as they were measured."""
    return MODELFILE.format(file=file, template=template(), stop=json.dumps(prompts.END_OF_TURN))


def template() -> str:
    """Return the chat format with thinking off as a Go template: each message, then the answer's opening.

    Both parts are what prompts.jinja renders, with Go's placeholders for a message: Ollama asks for an answer after a
    user's message only, so the think block that Jinja puts into a closing assistant turn is never due here.
    """
    from jinja2 import Environment

    render = Environment().from_string(prompts.template()).render
    turn = render(messages=[TURN], add_generation_prompt=False)
    opening = render(messages=[], add_generation_prompt=True)
    return "{{- range .Messages }}" + turn + "{{ end }}" + opening
