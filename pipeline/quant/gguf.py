"""The GGUF family: the merged model as one self-contained file of any of llama.cpp's file types."""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import io, prompts
from pipeline.config import Runtime
from pipeline.errors import UserError, nearest
from pipeline.prompts import Message
from pipeline.quant import gguf_writer, modelfile, weights
from pipeline.quant.job import Export, Job

if TYPE_CHECKING:
    from gguf import GGUFReader

log = logging.getLogger(__name__)

SUPER_BLOCK = 256  # weights of a K-quant's block; rows of other lengths cannot hold one
USAGE = """Run it with llama.cpp; the file holds tokenizer and chat template:

```
llama-cli -m {file} -p "咳嗽三天了怎么办？"
```

`Modelfile` beside it is for Ollama: `ollama create NAME -f Modelfile`."""


def make(job: Job) -> Export:
    """Write the merged model into ``job.out`` as a GGUF file of the recipe's file type, with a Modelfile beside it."""
    file_type = job.recipe.file_type
    path = job.out / f"{job.name}.gguf"
    if file_type in gguf_writer.MATRIX_TYPES:
        gguf_writer.write(job, path, file_type)
    else:
        number = _number(file_type, job.encoding)
        source = path.with_suffix(".source.gguf")
        own_type = weights.stored(job.merged)[0].dtype  # so that nothing is lost before the quantisation itself
        gguf_writer.write(job, source, own_type)
        _quantize(source, path, number, job)
        source.unlink()
    io.write_text(job.out / modelfile.NAME, modelfile.text(path.name))
    return _opened(job, path)


def _number(file_type: str, encoding: str) -> int:
    """Return llama.cpp's number of a quantised file type; raise UserError if it has no such type."""
    import gguf

    known = [name.removeprefix("MOSTLY_") for name in gguf.LlamaFileType.__members__ if name.startswith("MOSTLY_")]
    if file_type not in known:
        raise UserError(
            f"recipes/quantize/{encoding}.yaml: file_type: llama.cpp has no '{file_type}'{nearest(file_type, known)} "
            f"(known: F32, {', '.join(known)})"
        )
    return gguf.LlamaFileType[f"MOSTLY_{file_type}"]


def _quantize(source: Path, target: Path, number: int, job: Job) -> None:
    from pipeline.engines.llama import library

    llama = library.api()
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = number
    settings.nthread = job.params.runtime.threads
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise UserError(f"{job.name}: llama.cpp cannot quantise to {job.recipe.file_type} (its reason is above)")


def _opened(job: Job, path: Path) -> Export:
    """Read the file back: its tensor types, its tokenizer and template, its logits."""
    import gguf

    reader = gguf.GGUFReader(path)
    fallbacks = fallen_back(reader, job.recipe.file_type)
    if fallbacks:
        types = ", ".join(sorted({tensor["type"] for tensor in fallbacks}))
        matrices = sum(len(tensor.shape) > 1 for tensor in reader.tensors)
        message = "quantize@%s: %d of %d matrices have rows that do not fill blocks of %d and are stored as %s"
        log.warning(message, job.encoding, len(fallbacks), matrices, SUPER_BLOCK, types)
    return Export(
        bits=8 * sum(int(tensor.n_bytes) for tensor in reader.tensors),
        tensor_types=dict(sorted(Counter(tensor.tensor_type.name for tensor in reader.tensors).items())),
        chat_ids=_chat_ids(job.merged, path, reader.get_field("tokenizer.chat_template").contents()),
        logits=lambda ids: _logits(path, ids, job.params.runtime),
        usage=USAGE.format(file=path.name),
        library="gguf",
        exact=job.recipe.file_type in gguf_writer.MATRIX_TYPES,
        fallbacks=fallbacks,
    )


def main_type(file_type: str) -> str:
    """Return the tensor type that a file type is named after: Q4_K of Q4_K_M."""
    import gguf

    return max((name for name in gguf.GGMLQuantizationType.__members__ if file_type.startswith(name)), key=len)


def fallen_back(reader: GGUFReader, file_type: str) -> list[dict[str, Any]]:
    """Return the matrices that llama.cpp stored in another type because their rows do not fill whole blocks.

    A file type mixes several tensor types on purpose, but only K-quants among them have blocks of 256: a matrix
    whose rows are no multiple of it and whose type is not the main one was meant to be something else.
    """
    main = main_type(file_type)
    return [
        {"tensor": tensor.name, "row": int(tensor.shape[0]), "type": tensor.tensor_type.name}
        for tensor in reader.tensors
        if len(tensor.shape) > 1 and tensor.shape[0] % SUPER_BLOCK and tensor.tensor_type.name != main
    ]


def _chat_ids(merged: Path, path: Path, template: str) -> Callable[[Sequence[Message], bool], list[int]]:
    """Return a function that renders the file's own template as transformers would and tokenises with llama.cpp."""
    from pipeline.engines.llama import library

    renderer = prompts.load_tokenizer(merged)
    model = library.load_model(path, vocab_only=True)

    def ids(messages: Sequence[Message], answer_follows: bool) -> list[int]:
        text = renderer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer_follows
        )
        return library.tokenize(model, text)

    return ids


def _logits(path: Path, ids: Sequence[int], runtime: Runtime) -> np.ndarray:
    from pipeline.engines.llama.engine import LlamaEngine

    engine = LlamaEngine(path, runtime, batch_size=1)
    try:
        return next(iter(engine.logits([ids], [1])))
    finally:
        engine.close()
