"""python -m pipeline <verb>: small verbs around the DAG. The stages themselves are run by `dvc repro`."""

from __future__ import annotations

import argparse
import importlib
import sys

from pipeline import stage

VERBS = {  # verb: (module whose main() does it, what it does)
    "check": ("pipeline.check", "validate params, recipes, environment and inputs in about a second"),
    "list": ("pipeline.catalogue", "print the models, encodings, scorers and KV policies to choose from"),
}
EXAMPLES = """examples:
  python -m pipeline check
  python -m pipeline list
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
    for verb, (_, summary) in VERBS.items():
        verbs.add_parser(verb, help=summary, description=summary)
    module, _ = VERBS[parser.parse_args().verb]
    stage.start_logging()
    return stage.report_errors(lambda: importlib.import_module(module).main())


if __name__ == "__main__":
    sys.exit(main())
