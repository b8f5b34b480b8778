"""report: the JSON of all stages in eval/ to eval/report.md, eval/report.html and eval/metrics.json."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline import io, stage
from pipeline.config import Params
from pipeline.reporting import page
from pipeline.reporting.headline import headline
from pipeline.reporting.load import load

log = logging.getLogger(__name__)

METRICS = Path("eval/metrics.json")
MARKDOWN = Path("eval/report.md")
HTML = Path("eval/report.html")


def main(params: Params) -> None:
    """Read what every stage wrote to eval/; write the report and the headline metrics.

    Not timed: eval/timings is one of its inputs.
    """
    results = load(params)
    report = page.context(results)
    metrics, markdown, html = headline(results), page.markdown(report), page.html(report)
    io.write_json(METRICS, metrics)
    io.write_text(MARKDOWN, markdown)
    io.write_text(HTML, html)
    log.info("report: %s and %s; open the latter in a browser", MARKDOWN, HTML)


if __name__ == "__main__":
    stage.run(main)
