"""chat: talk to a quantised model in the terminal, under a KV-cache policy that keeps any conversation in memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import config, runtime
from pipeline.chatting.setting import DEFAULT_BUDGET, DEFAULT_POLICY
from pipeline.config import Params
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from pipeline.chatting.talk import Source
    from pipeline.engines.llama.kv import LlamaKvEngine

QUANTIZED = Path("artifacts/quantized")
MERGED = Path("artifacts/merged")
MOST_TOKENS = 512
NOTICE = "For research. Not medical advice."
PROBE = [{"role": "user", "content": "医生您好，我这3天一直咳嗽。\nIt's 38.5 °C."}]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--model", metavar="GGUF", help="a GGUF file or an encoding (the first of bench.encodings)")
    parser.add_argument("--policy", metavar="NAME", help=f"a KV policy of `list` ({DEFAULT_POLICY})")
    parser.add_argument("--budget", type=_positive, metavar="N", help=f"KV entries a layer ({DEFAULT_BUDGET})")
    parser.add_argument(
        "--max-tokens", type=_positive, default=MOST_TOKENS, metavar="N", help="of a reply (%(default)s)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (runtime.threads)")
    parser.add_argument("--load", type=Path, metavar="FOLDER", help="go on with a saved conversation")


def main(args: argparse.Namespace) -> None:
    """Load the model and talk until the input ends."""
    params = config.load()
    threads = args.threads or params.runtime.threads
    path = model_path(args.model or params.bench.encodings[0])
    runtime.configure(params.runtime.model_copy(update={"threads": threads}))
    from pipeline.chatting import commands, terminal
    from pipeline.chatting.talk import Talk
    from pipeline.engines.llama.kv import LlamaKvEngine

    terminal.notice(NOTICE)
    runtime.seed_torch(params.runtime.model_copy(update={"threads": threads}))
    with LlamaKvEngine(path, threads) as engine:
        source = _source(path, engine, params, args.max_tokens or MOST_TOKENS)
        chosen = source.setting(args.policy or DEFAULT_POLICY, args.budget or DEFAULT_BUDGET)
        talk = Talk(source, chosen)
        try:
            if args.load:
                result = talk.load(args.load, chosen if args.policy or args.budget else None)
                terminal.notice(commands.loaded(result, talk))
            terminal.notice(f"{path.name} under {talk.session.setting}; /help lists the commands")
            terminal.run(talk)
        finally:
            talk.close()


def model_path(name: str) -> Path:
    """Return a GGUF file by its path or encoding; raise UserError if there is none."""
    if name.endswith(".gguf"):
        return Path(name)
    found = sorted((QUANTIZED / name).glob("*.gguf"))
    if found:
        return found[0]
    made = sorted({path.parent.name for path in QUANTIZED.glob("*/*.gguf")})
    raise UserError(
        f"--model {name}: no GGUF file in {QUANTIZED / name}{nearest(name, made)} (made: {', '.join(made) or 'none'}); "
        "make it with `dvc repro quantize`, or give the path of a .gguf file"
    )


def _source(path: Path, engine: LlamaKvEngine, params: Params, max_tokens: int) -> Source:
    """Return the model as a talk needs it; raise UserError if the tokenizer is not the model's."""
    from pipeline import prompts
    from pipeline.chatting.session import Voice
    from pipeline.chatting.setting import Model
    from pipeline.chatting.talk import Source
    from pipeline.engines.llama import library

    tokenizer = prompts.load_tokenizer(MERGED)
    if library.tokenize(engine.model, prompts.prompt_text(tokenizer, PROBE)) != prompts.prompt_ids(tokenizer, PROBE):
        raise UserError(f"{path}: its token ids are not those of {MERGED}, whose tokenizer is used; take its own GGUF")
    voice = Voice(tokenizer, lambda token: library.token_bytes(engine.model, token), max_tokens)
    return Source(path, engine, voice, Model(engine.shape, library.context_length(engine.model)), params.bench.slack)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)
