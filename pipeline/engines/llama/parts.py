"""A GGUF file cut into files of consecutive layers without quantising again, and the embedding that feeds the first."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter, ReaderTensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # all layers alike, whatever their number
GAPPED = {"qwen3": "qwen3vl"}  # the same computation with positions of several parts, which may have gaps
VOCABULARY = 32  # rows of the zeros that stand for embedding and output head where neither is used
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


class Embedding:
    """The token embedding of a model: ids to the hidden states that enter the first layer."""

    def __init__(self, tensor: ReaderTensor):
        """Look up in the stored matrix, one encoded row an id, without decoding more than is asked for."""
        self._rows = tensor.data
        self._kind = tensor.tensor_type

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """Return float32 [n, width]; raise IndexError for an id outside the vocabulary."""
        from gguf import quants

        index = np.asarray(ids, np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(self._rows):
            raise IndexError(f"ids {index.min()} to {index.max()} of a vocabulary of {len(self._rows)}")
        return np.asarray(quants.dequantize(self._rows[index], self._kind), np.float32)


class Source:
    """A GGUF file as parts are made of it: its header, and its tensors mapped into memory."""

    def __init__(self, gguf: Path):
        """Read the header; raise UserError for a missing file or an architecture that cannot be cut."""
        from gguf import GGUFReader

        if not Path(gguf).is_file():
            raise UserError(f"{gguf}: no such file; make the model first (`dvc repro quantize`)")
        logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every file's endianness
        self._path = Path(gguf)
        self._reader: GGUFReader = GGUFReader(gguf)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = self._reader.fields["general.architecture"].contents()
        if self._architecture not in ARCHITECTURES:
            raise UserError(
                f"{gguf}: architecture {self._architecture} cannot be cut into parts "
                f"(known: {', '.join(ARCHITECTURES)}); take a KV-cache policy with one size for all layers"
            )
        self.layers: int = self._number("block_count")

    def embedding(self) -> Embedding:
        """Return the token embedding."""
        return Embedding(self._tensors[EMBEDDING])

    def split(self, bounds: Sequence[int], folder: Path, gapped: bool = False) -> list[Path]:
        """Write the parts that begin at layer 0 and at each of ``bounds``, and return their paths.

        Parts are fed hidden states, the first one those of :meth:`embedding`. The tensors of a layer are copied as
        they are stored. Only the last part has the vocabulary and the output head: logits of the others say nothing
        and cost nothing. ``gapped`` gives parts whose positions may have gaps, with the same logits. Raises ValueError
        for bounds that are not layers in order, UserError for ``gapped`` with an architecture that has no such form.
        """
        if gapped and self._architecture not in GAPPED:
            raise UserError(
                f"{self._path}: architecture {self._architecture} cannot skip positions (known: {', '.join(GAPPED)}); "
                "take a KV-cache policy that does not drop hidden states"
            )
        ranges = layer_ranges(self.layers, bounds)
        paths = [folder / f"{self._path.stem}.{part.start}-{part.stop - 1}.gguf" for part in ranges]
        for part, path in zip(ranges, paths, strict=True):
            self._write(part, path, gapped)
        return paths

    def _write(self, part: range, path: Path, gapped: bool) -> None:
        from gguf import GGUFWriter

        last = part.stop == self.layers
        writer = GGUFWriter(path, GAPPED[self._architecture] if gapped else self._architecture)
        self._add_header(writer)
        writer.add_block_count(len(part))
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(len(self._tensors[EMBEDDING].data) if last else VOCABULARY)
        if gapped:
            writer.add_rope_dimension_sections(_sections(self._number("attention.key_length")))
            writer.add_uint32(f"{writer.arch}.n_deepstack_layers", 0)
        if not last:
            width = self._number("embedding_length")
            writer.add_tensor(EMBEDDING, np.zeros((VOCABULARY, width), np.float32))
        for name, tensor in self._of_part(part, last):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _add_header(self, writer: GGUFWriter) -> None:
        """Copy what holds for every part: neither the file's own layout, nor the tokenizer, nor sizes that change."""
        from gguf import GGUFValueType

        own = f"{self._architecture}."
        replaced = ("GGUF.", "tokenizer.", "general.architecture", "general.alignment")
        for key, field in self._reader.fields.items():
            if key.startswith((*replaced, f"{own}block_count", f"{own}vocab_size")):
                continue
            kind = field.types[0]
            item = field.types[-1] if kind == GGUFValueType.ARRAY else None
            name = f"{writer.arch}.{key.removeprefix(own)}" if key.startswith(own) else key
            writer.add_key_value(name, field.contents(), kind, item)

    def _of_part(self, part: range, last: bool) -> Iterator[tuple[str, ReaderTensor]]:
        """Yield the tensors of a part by their names in it."""
        for name, tensor in self._tensors.items():
            if name.startswith("blk."):
                _, layer, rest = name.split(".", 2)
                if int(layer) in part:
                    yield f"blk.{int(layer) - part.start}.{rest}", tensor
            elif last or name not in (EMBEDDING, HEAD):
                yield name, tensor

    def _number(self, key: str) -> int:
        return self._reader.fields[f"{self._architecture}.{key}"].contents()


def layer_ranges(layers: int, bounds: Sequence[int]) -> list[range]:
    """Return the parts that begin at layer 0 and at each of ``bounds``; raise ValueError unless they are in order."""
    edges = [0, *bounds, layers]
    ranges = [range(start, stop) for start, stop in itertools.pairwise(edges)]
    if not all(ranges):
        raise ValueError(f"parts that begin at layers {list(bounds)}: expected rising numbers from 1 to {layers - 1}")
    return ranges


def _sections(head_length: int) -> list[int]:
    """Return how many pairs of a head turn with each part of a position.

    The parts take turns, so that each must have as many as its turn comes: a pair beyond them would turn with the
    fourth part.
    """
    pairs = head_length // 2
    return [(pairs + 2 - turn) // 3 for turn in range(3)] + [0]
