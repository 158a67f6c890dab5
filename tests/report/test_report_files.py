"""The files of a report: they say the same, need nothing else, and no name in them is ever more than a name."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

import made_up_report
from distillab.report.document import Chart, Document, Figures, Gallery, Listing, Section
from distillab.report.formats import as_json, as_markdown
from distillab.report.page import as_html
from distillab.results.rows import as_csv

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></script><svg onload=alert(1)>",
    "a | b\\| c `d` [e](javascript:alert(1)) ![f](http://example.com/g.png)",
    "{{ 7 * 7 }}{% raw %}",
    "$x^2$ _i_ **b** &lt; &amp;",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "-2+3+cmd",
    "\u202egnp.nur",
)


class Page(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and text by the element that it is in."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, [])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def document() -> Document:
    return made_up_report.document(methods=("st", "mbd-soft"))


@pytest.fixture(scope="module")
def evil() -> Document:
    classes = (*EVIL[: 10 - 2], "cat", "dog")
    return made_up_report.document(methods=EVIL, classes=classes, num_seeds=2, title=" ".join(EVIL))


@pytest.fixture(scope="module")
def page(evil: Document) -> Page:
    return Page(as_html(evil))


def names_in(document: Document) -> list[str]:
    """The names of the methods as the report has them."""
    return [str(row["method"]) for row in document.rows]


def test_no_name_becomes_an_element(page: Page, document: Document) -> None:
    known = {tag for tag, _ in Page(as_html(document)).elements}
    assert {tag for tag, _ in page.elements} <= known
    assert page.count("script") == page.count("style") == 1


def test_nothing_runs_but_what_the_policy_names(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256("".join(page.texts[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, tag  # the policy would not let it pass


def test_a_page_loads_nothing(page: Page, evil: Document) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    style = "".join(page.texts["style"])
    assert "@import" not in style
    assert not re.search(r"url\((?!#|[\"']?data:)", style)
    assert "http" not in "".join(page.texts["script"])


def test_each_id_is_there_once_and_each_reference_leads_to_one(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in attributes.values():
            for target in re.findall(r"url\(#([^)]+)\)", value or ""):
                assert target in ids
        link = attributes.get("href")
        assert not (link or "").startswith("#") or str(link)[1:] in ids


def test_what_is_said_is_said_word_for_word(page: Page, evil: Document) -> None:
    text = " ".join(word for words in page.texts.values() for word in words)
    for name in names_in(evil):
        assert name in text
    assert evil.headline in text


def test_equal_documents_give_equal_bytes(document: Document) -> None:
    again = made_up_report.document(methods=("st", "mbd-soft"))
    for form in (as_html, as_markdown, as_json):
        assert form(document) == form(again)


def cells_of(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def test_no_name_breaks_a_table_of_the_markdown(evil: Document) -> None:
    lines = as_markdown(evil).splitlines()
    heads = [n for n, line in enumerate(lines) if re.fullmatch(r"\|[-:|]+\|", line)]
    assert len(heads) > 5
    for head in heads:
        n = head - 1
        while n < len(lines) and lines[n].startswith("|"):
            assert cells_of(lines[n]) == cells_of(lines[head]), lines[n]
            n += 1


def test_no_name_becomes_markup_where_markdown_is_rendered(evil: Document) -> None:
    rendered = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(as_markdown(evil)))
    plain = {"h1", "h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert {tag for tag, _ in rendered.elements} <= plain
    words = "".join(word for words in rendered.texts.values() for word in words)
    for name in names_in(evil):
        assert name in words


def test_no_cell_of_the_csv_is_a_formula_and_all_numbers_are_there(evil: Document) -> None:
    table = list(csv.DictReader(io.StringIO(as_csv(evil.rows))))
    assert len(table) == len(evil.rows)
    for cells, row in zip(table, evil.rows, strict=True):
        assert cells["method"].removeprefix("'") == row["method"]
        assert float(cells["top1_mean"]) == row["top1_mean"]
        for cell in cells.values():
            assert not cell.startswith(("=", "+", "-", "@")) or re.fullmatch(r"-[\d.e-]+( -?[\d.e-]+)*", cell), cell


def test_json_has_all_rows_tables_and_sentences(document: Document) -> None:
    content = json.loads(as_json(document))
    assert content["rows"] == json.loads(json.dumps(document.rows))
    assert content["headline"] == document.headline
    assert list(content["sections"]) == [section.name for section in document.sections]
    for section in document.sections:
        for block, plain in zip(section.blocks, content["sections"][section.name]["blocks"], strict=True):
            if isinstance(block, Chart | Figures):
                table = block.numbers if isinstance(block, Chart) else block.table
                assert plain["rows"] == [list(row) for row in table.rows]
            if isinstance(block, Gallery):
                assert len(plain["images"]) == len(block.pictures)


def shown_rows(document: Document) -> Sequence[Sequence[str]]:
    return next(block for block in document.sections[0].blocks if isinstance(block, Figures)).table.rows


def test_page_markdown_and_json_show_the_same_table(document: Document) -> None:
    rows = shown_rows(document)
    text = Page(as_html(document)).texts
    on_page = {word.strip() for words in text.values() for word in words}
    assert {re.sub(r"(?<!\d)-(?=\d)", "\u2212", cell) for row in rows for cell in row} - {"-"} <= on_page
    lines = as_markdown(document).replace("\\", "").splitlines()
    for row in rows:
        assert f"| {' | '.join(row)} |" in lines


def test_the_markdown_aligns_numbers_to_the_right_and_words_to_the_left(document: Document) -> None:
    lines = as_markdown(document).splitlines()
    for section in document.sections:
        for block in section.blocks:
            if isinstance(block, Chart | Figures):
                columns = (block.numbers if isinstance(block, Chart) else block.table).columns
                assert f"|{'|'.join('---:' if column.numeric else '---' for column in columns)}|" in lines


def test_below_a_picture_stands_who_was_right(document: Document) -> None:
    text = as_markdown(document).replace("\\", "")
    pictures = [
        picture
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Gallery)
        for picture in block.pictures
    ]
    assert pictures
    for picture in pictures:
        for name, choice, right in picture.lines:
            assert right == (choice == picture.label)
            assert f"{name} {choice} ({'right' if right else 'wrong'})" in text


def test_what_is_left_out_is_told_in_every_file(document: Document) -> None:
    assert document.left_out == ("runs/one-that-died is not complete.",)
    assert json.loads(as_json(document))["left_out"] == list(document.left_out)
    for text in (as_markdown(document).replace("\\", ""), as_html(document)):
        assert document.left_out[0] in text


def test_no_text_that_was_typed_becomes_markup() -> None:
    listing = Listing("it was run as", "# no head\n```\n* no list\n<b>no element</b>")
    text = as_markdown(Document("t", "h", {}, (Section("s", "s", (listing,)),), (), ()))
    rendered = Page(MarkdownIt("commonmark", {"html": True}).render(text))
    assert rendered.texts["code"] == [listing.text + "\n"]


def test_a_number_that_json_does_not_know_is_no_row_of_a_report(document: Document) -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_json(replace(document, rows=[{"method": "st", "top1_mean": float("nan")}]))


PARTS = {
    "results": ("accuracy",),
    "learning": ("curves",),
    "cost": ("cost",),
    "teacher": ("teacher", "similarity"),
    "calibration": ("reliability",),
    "confusions": ("confusion",),
    "disagreements": (),
    "features": ("embedding",),
    "reproduce": (),
    "left-out": (),
}


def test_a_report_has_all_its_parts(document: Document) -> None:
    found = {
        section.name: tuple(block.name for block in section.blocks if isinstance(block, Chart))
        for section in document.sections
    }
    assert {name: found[name] for name in PARTS} == PARTS
    assert any(isinstance(block, Gallery) for section in document.sections for block in section.blocks)
