"""python -m pipeline <verb>: small verbs around the DAG. The stages themselves are run by `dvc repro`."""

from __future__ import annotations

import argparse
import importlib
import sys

from pipeline import stage

VERBS = {  # verb: (module whose main() does it, what it does)
    "check": ("pipeline.check", "validate params, recipes, environment and inputs in about a second"),
    "publish": ("pipeline.publish", "put an artifact and its card with the measured numbers into a new folder"),
    "list": ("pipeline.catalogue", "print the models, encodings, scorers and KV policies to choose from"),
}
EXAMPLES = """examples:
  python -m pipeline check
  python -m pipeline list
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
    for verb, (name, summary) in VERBS.items():
        arguments = verbs.add_parser(verb, help=summary, description=summary)
        if verb in sys.argv[1:2] and (add := getattr(importlib.import_module(name), "add_arguments", None)):
            add(arguments)
    options = parser.parse_args()
    module = importlib.import_module(VERBS[options.verb][0])
    stage.start_logging()
    return stage.report_errors(lambda: module.main(options) if hasattr(module, "add_arguments") else module.main())


if __name__ == "__main__":
    sys.exit(main())
