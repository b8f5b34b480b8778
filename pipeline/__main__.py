"""python -m pipeline <verb>: small verbs around the DAG. The stages themselves are run by `dvc repro`."""

from __future__ import annotations

import argparse
import importlib
import sys

from pipeline import stage

VERBS = {  # verb: (module whose main() does it, what it does); main takes arguments if add_arguments declares some
    "check": ("pipeline.check", "validate params, recipes, environment and inputs in about a second"),
    "chat": ("pipeline.chat", "talk to a quantised model in the terminal under a KV-cache policy"),
    "compare": ("pipeline.compare", "put two revisions or DVC experiments side by side on one page"),
    "publish": ("pipeline.publish", "put an artifact and its card with the measured numbers into a new folder"),
    "list": ("pipeline.catalogue", "print the models, encodings, scorers and KV policies to choose from"),
}
INTERRUPTED = 130  # as shells count it: 128 and SIGINT
EXAMPLES = """examples:
  python -m pipeline check
  python -m pipeline list
  python -m pipeline chat --policy streaming_llm
  python -m pipeline compare main workspace --out compare.html
  python -m pipeline publish Q4_K_M upload/Q4_K_M
  dvc repro
  dvc exp run -S lora.r=16
"""


def main() -> int:
    """Parse the verb, run its module's ``main`` and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    module = None
    for verb, (name, summary) in VERBS.items():
        own = verbs.add_parser(verb, help=summary, description=summary)
        if sys.argv[1:2] == [verb]:  # no other verb is imported
            module = importlib.import_module(name)
            takes = hasattr(module, "add_arguments")
            if takes:
                module.add_arguments(own)
    args = parser.parse_args()
    stage.start_logging()
    try:
        return stage.report_errors(lambda: module.main(args) if takes else module.main())
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
