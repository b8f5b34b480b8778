"""report: the JSON of all stages in eval/ to eval/report.md, eval/report.html, eval/metrics.json and eval/plots/."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline import io, stage
from pipeline.config import Params
from pipeline.reporting import page, plots
from pipeline.reporting.headline import headline
from pipeline.reporting.load import load

log = logging.getLogger(__name__)

METRICS = Path("eval/metrics.json")
MARKDOWN = Path("eval/report.md")
HTML = Path("eval/report.html")
PLOTS = Path("eval/plots")


def main(params: Params) -> None:
    """Read what every stage wrote to eval/; write the report, the headline metrics and what `dvc plots` draws.

    Not timed: eval/timings is one of its inputs.
    """
    results = load(params)
    report = page.context(results)
    metrics, markdown, html = headline(results), page.markdown(report), page.html(report)
    with io.atomic_dir(PLOTS) as out:
        for name, rows in plots.tidy(results).items():
            io.write_json(out / f"{name}.json", rows)
    io.write_json(METRICS, metrics)
    io.write_text(MARKDOWN, markdown)
    io.write_text(HTML, html)
    log.info("report: %s and %s; open the latter in a browser", MARKDOWN, HTML)


if __name__ == "__main__":
    stage.run(main)
