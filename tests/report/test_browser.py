"""The page of a report in a real browser: it loads nothing, fits every screen, and can be read and reached by all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

import made_up_report
from distillab.report.page import as_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium, or the like")

WIDTHS = (360, 480, 768, 1024, 1280, 1920)
PAPER_PIXELS = 703  # A4, its short side between margins of 12 mm, at 96 pixels an inch
HOSTILE = (
    """<img src="x" onerror="document.title='taken'">""",
    "</script><script>document.title='taken'</script>",
    "a method, temperature 4.0, label weight 0.25, distill weight 0.75",
    "W" * 100,
)
CLASSES = ("</title><b>cat", "{{ 7 * 7 }}", "$x^2$", "\N{CAT FACE} \N{CJK UNIFIED IDEOGRAPH-732B}", "d" * 90)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a page in which every name means harm or is far too long; all tests share it."""
    document = made_up_report.document(
        methods=("st", "fitnet", *HOSTILE), classes=CLASSES, num_seeds=2, title="</title><h1>x"
    )
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(as_html(document), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def eleven_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison as people make them."""
    methods = (*made_up_report.METHODS, "fitnet, hint_weight 10.0", "st, temperature 8.0")
    page = tmp_path_factory.mktemp("eleven") / "report.html"
    page.write_text(as_html(made_up_report.document(methods=methods)), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync")  # fmt: skip
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in flags])
        yield started
        started.close()


class Opened:
    """A page in the browser, and what it has done that no report should."""

    def __init__(self, browser: Browser, address: str, **context: Any) -> None:
        self._context = browser.new_context(**context)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(120_000)  # milliseconds; half a minute is too short where everybody is busy
        self.told: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.refused: list[str] = []
        self.page.on("requestfailed", lambda r: self.refused.append(r.url) if r.failure == "csp" else None)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(address)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()


def at(width: int) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": 900}}


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_requested_or_complained_of_whatever_is_clicked(browser: Browser, address: str, scheme: str) -> None:
    with Opened(browser, address, color_scheme=scheme) as opened:
        for summary in opened.page.locator("summary").all():
            summary.click()
        for button in opened.page.locator("#legend button").all():
            button.click()
        opened.page.locator("#results th button").first.click()
        opened.page.locator("#chart-accuracy svg path").first.hover(force=True)
        assert opened.told == []
        assert [url for url in opened.requested if not url.startswith("data:")] == [address]


STICKING_OUT = """() => [...document.querySelectorAll("body *")].filter((one) => {
  if (one.closest(".scroll, pre, #legend, .skip, .unseen, .tip")) return false;
  if (one.closest("svg > *") && one.tagName !== "text") return false; // lines may be clipped
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
}).map((one) => `${one.tagName} ${one.getAttribute("class")} ${one.textContent.slice(0, 60)}`)"""


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_of_the_screen(browser: Browser, address: str, width: int) -> None:
    with Opened(browser, address, **at(width)) as opened:
        open_all(opened.page)
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        assert opened.page.evaluate(STICKING_OUT) == []


LABELS_CUT_OR_COLLIDING = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("#chart-accuracy svg, #chart-curves svg, #chart-cost svg")) {
    const own = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    for (const [text, box] of boxes) {
      if (box.left < own.left - 3 || box.right > own.right + 3 || box.bottom > own.bottom + 3) found.push(text);
      for (const [other, next] of boxes) {
        const across = Math.min(box.right, next.right) - Math.max(box.left, next.left);
        const down = Math.min(box.bottom, next.bottom) - Math.max(box.top, next.top);
        if (box !== next && across > 1 && down > 0.45 * box.height) found.push(`${text} on ${other}`);
      }
    }
  }
  return found;
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_labels_of_charts_are_whole_and_apart(browser: Browser, address: str, width: int) -> None:
    with Opened(browser, address, **at(width)) as opened:
        assert opened.page.evaluate(LABELS_CUT_OR_COLLIDING) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_letters_of_charts_are_large_enough_to_read(browser: Browser, address: str, width: int) -> None:
    with Opened(browser, address, **at(width)) as opened:
        heights = opened.page.evaluate(
            """() => [...document.querySelectorAll("svg text")].map((text) => {
              const { a, b } = text.getScreenCTM(); // some are turned
              return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
            })"""
        )
        assert min(heights) > 9
        assert max(heights) < 18


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_anybody_out(browser: Browser, address: str, scheme: str) -> None:
    with Opened(browser, address, color_scheme=scheme, reduced_motion="reduce", **at(1280)) as opened:
        open_all(opened.page)
        found = Axe().run(opened.page)
        assert found.violations_count == 0, found.generate_report()


FAINT_LETTERS = """() => {
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const parts = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const light = (parts) => parts.map(linear).reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = parts(getComputedStyle(document.body).backgroundColor);
  const faint = [...document.querySelectorAll("svg text")]
    .filter((text) => ratio(parts(getComputedStyle(text).fill), ground) < 4.5)
    .map((text) => text.textContent);
  for (const cell of document.querySelectorAll("#chart-similarity path")) {
    const style = getComputedStyle(cell);
    if (style.fill === "none" || style.opacity === "1") continue;
    const behind = parts(style.fill).map((part, n) => part * style.opacity + ground[n] * (1 - style.opacity));
    if (ratio(parts(getComputedStyle(document.body).color), behind) < 4.5) faint.push(`on ${style.opacity}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_in_charts_stand_out_from_what_is_behind_them(browser: Browser, address: str, scheme: str) -> None:
    with Opened(browser, address, color_scheme=scheme) as opened:
        assert opened.page.locator("#chart-similarity path").count() > 0
        assert opened.page.evaluate(FAINT_LETTERS) == []


def test_the_page_is_dark_for_those_who_ask_for_it(browser: Browser, address: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with Opened(browser, address, color_scheme=scheme) as opened:
            ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds.append(min(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))))
    light, dark = grounds
    assert light > 240
    assert dark < 40


def test_a_keyboard_reaches_and_works_all_that_a_mouse_does(browser: Browser, address: str) -> None:
    with Opened(browser, address, **at(1280)) as opened:
        page = opened.page
        reached = []
        for _ in range(80):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.closest('a, #legend, .scroll, summary')?.outerHTML"))
            if page.evaluate("document.activeElement.matches('#results > .scroll th button')"):
                break
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline not in ("none", ""), f"no one sees that this has the focus: {reached[-1][:80]}"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
        kinds = [next(kind for kind in ("skip", "nav", "legend", "other") if _is(kind, html)) for html in reached]
        assert list(dict.fromkeys(kinds)) == ["skip", "nav", "legend", "other"]
        button = page.locator("#legend button").nth(2)
        button.focus()
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "false"


def _is(kind: str, html: str) -> bool:
    starts = {"skip": '<a class="skip"', "nav": '<a href="#', "legend": '<div class="legend"', "other": "<"}
    return html.startswith(starts[kind])


DISPLAYED = """(row) => [...new Set([...document.querySelectorAll(`svg .series-${row}`)].map(
  (mark) => getComputedStyle(mark).display !== "none"))]"""


def test_the_legend_hides_a_row_in_every_chart_and_shows_it_again(browser: Browser, address: str) -> None:
    with Opened(browser, address, **at(1280)) as opened:
        page = opened.page
        button = page.locator("#legend button").nth(2)
        charts = "[...new Set([...document.querySelectorAll('svg .series-2')].map((one) => one.closest('figure').id))]"
        assert {"chart-accuracy", "chart-curves", "chart-cost", "chart-teacher"} <= set(page.evaluate(charts))
        for hidden in (True, False):
            button.click()
            assert button.get_attribute("aria-pressed") == str(not hidden).lower()
            assert page.evaluate(DISPLAYED, 2) == [not hidden]
        assert page.evaluate(DISPLAYED, 1) == [True]


def test_a_row_that_is_pointed_at_stands_out_in_all_charts(browser: Browser, address: str) -> None:
    with Opened(browser, address, reduced_motion="reduce", **at(1280)) as opened:
        opened.page.locator("#legend button").nth(2).hover()
        opacity = "(name) => getComputedStyle(document.querySelector(`#chart-curves svg .${name}`)).opacity"
        assert float(opened.page.evaluate(opacity, "series-2")) == 1
        assert float(opened.page.evaluate(opacity, "series-3")) < 0.5


def test_tables_sort_by_numbers_and_back_and_what_is_missing_stays_last(browser: Browser, address: str) -> None:
    with Opened(browser, address, **at(1280)) as opened:
        table = opened.page.locator("#results > .scroll table").first
        heads = table.locator("thead th").all_inner_texts()
        column = heads.index("versus alone")
        button = table.locator("thead th").nth(column).locator("button")

        def cells() -> list[str]:
            return table.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()

        given = cells()
        for order in ("ascending", "descending"):
            button.click()
            assert table.locator("thead th").nth(column).get_attribute("aria-sort") == order
            shown = cells()
            assert sorted(shown) == sorted(given)
            numbers = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in shown if cell != "\N{EN DASH}"]
            assert numbers == sorted(numbers, reverse=order == "descending")
            assert len(set(numbers)) > 1
            assert shown[len(numbers) :] == ["\N{EN DASH}"] * given.count("\N{EN DASH}") != []


def test_on_paper_there_is_all_to_read_and_nothing_to_click(browser: Browser, address: str) -> None:
    with Opened(browser, address, color_scheme="dark", **at(PAPER_PIXELS)) as opened:
        page = opened.page
        page.locator("#legend button").nth(2).click()
        page.emulate_media(media="print", color_scheme="dark")
        for chrome in ("nav", "#legend", ".skip", "figure summary", ".tip"):
            assert {one.is_hidden() for one in page.locator(chrome).all()} == {True}, chrome
        assert {one.is_visible() for one in page.locator("section h2, figure svg").all()} == {True}
        assert page.evaluate(DISPLAYED, 2) == [True]
        assert page.locator("pre").first.bounding_box() is not None
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") <= PAPER_PIXELS
        assert len(page.pdf(prefer_css_page_size=True)) > 10_000


def test_numbers_that_are_not_drawn_are_on_paper(browser: Browser, address: str) -> None:
    with Opened(browser, address, **at(PAPER_PIXELS)) as opened:
        opened.page.emulate_media(media="print")
        table = opened.page.locator("#chart-confusion table")
        assert table.is_hidden()
        opened.page.evaluate("document.querySelector('#chart-confusion .panels').remove()")  # so it is of many classes
        opened.page.evaluate("document.querySelector('#chart-confusion details').open = true")
        assert table.is_visible()


def test_eleven_rows_are_ten_pages_of_paper(browser: Browser, eleven_rows: Path) -> None:
    with Opened(browser, eleven_rows.as_uri()) as opened:
        for paper in ("A4", "Letter"):
            printed = opened.page.pdf(prefer_css_page_size=True, format=paper)
            assert len(re.findall(rb"/Type\s*/Page\b", printed)) <= 10, paper


def test_without_scripts_the_page_says_the_same(browser: Browser, address: str) -> None:
    with Opened(browser, address) as opened:
        open_all(opened.page)
        opened.page.evaluate("document.querySelector('#legend').remove()")  # only those with scripts get it
        with_scripts = opened.page.locator("main").inner_text()
    with Opened(browser, address, java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator("#legend").is_hidden()
        assert page.locator("th button").count() == 0
        for summary in page.locator("summary").all():
            summary.click()
        assert page.locator("main").inner_text() == with_scripts
        assert page.locator("svg title").count() > 20
        assert opened.told == []


def test_names_that_mean_harm_are_text(browser: Browser, address: str) -> None:
    with Opened(browser, address) as opened:
        page = opened.page
        open_all(page)
        text = page.locator("body").text_content() or ""
        assert all(name in text for name in (*HOSTILE, *CLASSES))
        assert page.title() == "</title><h1>x"
        assert page.locator("h1").count() == 1
        assert page.locator("script").count() == 1
        assert page.locator("main b, img[src='x']").count() == 0
        assert "49" not in page.locator("#confusions table").inner_text()


def test_what_is_not_in_the_page_cannot_run_in_it(browser: Browser, address: str) -> None:
    with Opened(browser, address) as opened:
        opened.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "document.title = 'taken'";
              document.body.append(script);
              const image = new Image();
              image.src = "https://example.org/picture.png";
              document.body.append(image);
            }"""
        )
        opened.page.wait_for_function("[...document.images].at(-1).complete")
        assert opened.page.title() != "taken"
        assert [told.split()[0] for told in opened.told] == ["Executing", "Loading"]
        assert all("Content Security Policy" in told for told in opened.told)
        assert opened.refused == ["https://example.org/picture.png"]


def test_charts_tables_and_pictures_say_what_they_are(browser: Browser, address: str) -> None:
    with Opened(browser, address) as opened:
        page = opened.page
        for selector, attribute in (("svg", "aria-label"), ("img", "alt"), (".scroll", "aria-label")):
            assert page.locator(selector).count() > 0
            assert all(one.get_attribute(attribute) for one in page.locator(selector).all()), selector
        assert page.locator("table").count() == page.locator("caption").count()
        assert page.locator("figure").count() == page.locator("figure figcaption").count()
        assert page.locator("figure").count() == page.locator("figure details table").count()
        levels = [
            int(one[1]) for one in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => h.tagName)")
        ]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_report_of_eleven_rows_stays_small(eleven_rows: Path) -> None:
    assert eleven_rows.stat().st_size < 1_000_000
