"""base: put the model that everything starts from into artifacts/base, checked to be complete."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline import io, models, stage
from pipeline.config import Params

log = logging.getLogger(__name__)

BASE = Path("artifacts/base")


def main(params: Params) -> None:
    """Read recipes/models/<model>.yaml; write artifacts/base."""
    with stage.timed("base"), io.atomic_dir(BASE) as partial:
        models.provide(models.read(params.model), partial, params.runtime.seed)
    log.info("base: %s is in %s (%.1f MB)", params.model, BASE, io.size_bytes(BASE) / 1e6)


if __name__ == "__main__":
    stage.run(main)
