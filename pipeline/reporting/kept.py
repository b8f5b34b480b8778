"""The picture of what a policy kept of a prompt: layers from top to bottom, the prompt from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from pipeline.reporting.svg import element

SHADES = 5  # steps from nothing kept to everything


def picture(kept: Sequence[Sequence[float]], title: str) -> Markup:
    """Return the shares of each layer's stretches of the prompt as a drawing; a stronger colour says that more is kept.

    ``kept`` holds for each layer a row of shares from 0 to 1, all rows of one length.
    """
    paths = ["" for _ in range(SHADES + 1)]
    for layer, shares in enumerate(kept):
        start = 0
        for shade, run in groupby(map(_shade, shares)):
            width = len(list(run))
            paths[shade] += f"M{start} {layer}h{width}v1h-{width}z"
            start += width
    drawn = [element("path", d=path, class_=f"shade{shade}") for shade, path in enumerate(paths) if shade and path]
    box = f"0 0 {max(map(len, kept), default=1)} {max(len(kept), 1)}"
    hint = element("title", title)
    more = {"viewBox": box, "preserveAspectRatio": "none", "role": "img", "aria_label": title}
    return element("svg", hint, *drawn, **more, class_="kept")


def _shade(share: float) -> int:
    """Return the step of a share: nothing is 0, whatever little there is at least 1."""
    return math.ceil(min(1.0, max(0.0, share)) * SHADES) if math.isfinite(share) else 0
