"""A report as Markdown and JSON: the same sentences and numbers as on the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from distillab import __version__
from distillab.report.document import Block, Chart, Document, Figures, Gallery, Listing, Paragraph
from distillab.tables import Table

_FORMAT = 1
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")


def as_markdown(document: Document) -> str:
    """The report as Markdown; charts are their numbers, pictures are words.

    Args:
        document: What it says.
    """
    lines = [f"# {_escaped(document.headline)}", "", _escaped(document.title), ""]
    lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in document.facts.items()]
    for section in document.sections:
        lines += ["", f"## {_escaped(section.title)}"]
        for block in section.blocks:
            lines += ["", *_markdown(block)]
    return "\n".join(lines) + "\n"


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield _escaped(text)
        case Figures(caption, table):
            yield from (_escaped(caption), "", *_markdown_table(table))
        case Chart():
            yield from (f"### {_escaped(block.title)}", "", _escaped(block.description), "")
            yield from _markdown_table(block.numbers)
        case Gallery(title, pictures):
            yield from (f"### {_escaped(title)}", "")
            for picture in pictures:
                choices = ", ".join(
                    f"{name} {choice} ({'right' if right else 'wrong'})" for name, choice, right in picture.lines
                )
                yield f"- {_escaped(f'{picture.text}: {choices}')}"
        case Listing(title, text):
            # Indented, not fenced: no text can end it.
            yield from (f"### {_escaped(title)}", "", *(f"    {line}" for line in text.splitlines()))


def _markdown_table(table: Table) -> Iterator[str]:
    yield _line(column.title for column in table.columns)
    yield "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|"
    for row in table.rows:
        yield _line(row)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def as_json(document: Document) -> str:
    """The whole report as one JSON object: rows as numbers, all tables as they are shown.

    Args:
        document: What it says.
    """
    content = {
        "generator": f"distillab {__version__}",
        "format_version": _FORMAT,
        "title": document.title,
        "headline": document.headline,
        "facts": document.facts,
        "rows": document.rows,
        "sections": {
            section.name: {"title": section.title, "blocks": [_plain(block) for block in section.blocks]}
            for section in document.sections
        },
        "left_out": document.left_out,
    }
    return json.dumps(content, indent=2, allow_nan=False, default=dict) + "\n"


def _plain(block: Block) -> dict[str, Any]:
    match block:
        case Paragraph(text):
            return {"text": text}
        case Figures(caption, table):
            return {"title": caption, **_columns(table)}
        case Chart():
            return {"title": block.title, "text": block.description, **_columns(block.numbers)}
        case Gallery(title, pictures):
            return {"title": title, "images": [{"text": one.text, "choices": one.lines} for one in pictures]}
        case Listing(title, text):
            return {"title": title, "text": text}


def _columns(table: Table) -> dict[str, Any]:
    return {"columns": [column.title for column in table.columns], "rows": table.rows}
