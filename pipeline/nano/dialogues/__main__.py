"""Write the sample dialogues: ``python -m pipeline.nano.dialogues [--out DIR]`` makes train.jsonl and test.jsonl."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.io import write_jsonl
from pipeline.nano.dialogues.generate import generate
from pipeline.nano.dialogues.knowledge import load

DIALOGUES = Path(__file__).parents[3] / "data" / "embedded" / "dialogues"


def main(argv: list[str] | None = None) -> None:
    """Generate both splits into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.nano.dialogues", description=__doc__)
    parser.add_argument("--out", type=Path, default=DIALOGUES, help="folder of the two files (default: %(default)s)")
    out = parser.parse_args(argv).out
    for split, records in generate(load()).items():
        write_jsonl(out / f"{split}.jsonl", records)


if __name__ == "__main__":
    main()
