"""The report in a real browser: it fits every width, light and dark, sorts its tables, prints, and never complains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import config, report
from tests import browser
from tests.conftest import ROOT
from tests.report_pages import workspace

WIDTHS = (390, 1024, 1600)
BLOCKS = "h1, h2, h3, h4, p, li, dd, dt, figure, svg:not(.plane svg), .card, .choice, .scroll, pre, summary"
OUTSIDE = f"""
[...document.querySelectorAll("{BLOCKS}")]
  .filter((one) => one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 80))
"""
CONTRAST = """
(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (colour) => (Math.max(page, light(colour)) + 0.05) / (Math.min(page, light(colour)) + 0.05);
  return ["body", ".note", ".kicker", ".choice strong", ".answer b", ".card .source"]
    .map((name) => [name, ratio(getComputedStyle(document.querySelector(name)).color)]);
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report of a whole run, with hostile text in an answer."""
    directory = tmp_path_factory.mktemp("browsed")
    with pytest.MonkeyPatch.context() as patch:
        results = workspace(config.load(ROOT / "params.yaml"), directory, patch)
        sample = directory / "eval/quality/base.json"
        text = sample.read_text(encoding="utf-8")
        sample.write_text(text.replace("的的的的", "<img src=x onerror=alert(1)><script>alert(2)</script>"), "utf-8")
        report.main(results)
    return directory / report.HTML


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[browser.Tab]:
    """A tab of a headless browser; the tests are skipped where there is none."""
    executable = browser.find()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with browser.tab(executable, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window(tab, page, width, dark):
    tab.open(page, width, dark)
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(OUTSIDE) == []
    assert tab.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_on_its_ground(tab, page, dark):
    tab.open(page, 1024, dark)
    shades = tab.run("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)")
    assert (sum(shades) < 384) == dark
    assert {name: ratio for name, ratio in tab.run(CONTRAST) if ratio < 4.5} == {}


def test_a_click_on_a_heading_sorts_what_is_not_a_number_last(tab, page):
    html = page.read_text(encoding="utf-8")
    broken = page.with_name("broken.html")
    broken.write_text(html.replace(' data-sort="0.61"', "", 1), encoding="utf-8")
    tab.open(broken, 1024)
    tab.run("""
        var table = [...document.querySelectorAll("#bench table.sortable")].find((one) => one.rows.length > 4);
        var column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("KLD"));
        var click = () => table.tHead.rows[0].cells[column].querySelector("button").click();
        var order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
    """)
    rest = ["full", "snapkv", "streaming_llm"]
    assert tab.run("click(); order()") == [*rest, "recent_only"]
    assert tab.run("click(); order()") == [*reversed(rest), "recent_only"]
    assert tab.run('table.tHead.rows[0].cells[column].getAttribute("aria-sort")') == "descending"
    assert tab.complaints == []


def test_names_in_a_figure_cover_nothing_but_points(tab, page):
    tab.open(page, 1600)
    boxes = tab.run("""
        const sides = ({left, top, right, bottom}) => [left, top, right, bottom];
        const place = (text) => sides(text.getBoundingClientRect());
        [...document.querySelectorAll("figure.plane svg")].map((svg) => [...svg.querySelectorAll("text")].map(place))
    """)
    assert len(boxes) == 2
    for texts in boxes:
        for index, one in enumerate(texts):
            for other in texts[index + 1 :]:
                across = min(one[2], other[2]) - max(one[0], other[0])
                down = min(one[3], other[3]) - max(one[1], other[1])
                assert min(across, down) < 2, (one, other)


def test_hostile_text_stays_text(tab, page):
    tab.open(page, 1024)
    assert tab.run('document.querySelectorAll("img").length') == 0
    assert tab.run('document.querySelectorAll("script").length') == 1
    assert "<script>alert(2)</script>" in tab.run('document.querySelector("#answers").textContent')


def test_it_prints(tab, page):
    tab.open(page, 1024, media="print")
    assert tab.run('getComputedStyle(document.querySelector("nav")).display') == "none"
    assert tab.pdf().startswith(b"%PDF-")
