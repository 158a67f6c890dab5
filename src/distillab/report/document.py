"""A report as data: headline, sections, tables, charts, pictures; `page` and `formats` write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from distillab.report.drawing import Panel
from distillab.tables import Table


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Figures:
    """A table of numbers.

    Attributes:
        caption: What they are.
        table: Finished text; the first cell of a row says what it is of.
        series: Number of the variant of each row, for those that are about one.
    """

    kind: ClassVar[str] = "figures"
    caption: str
    table: Table
    series: tuple[int, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same as numbers.

    Attributes:
        name: Unique in the report; letters and dashes.
        title: What it shows.
        description: How to read it.
        panels: At least one.
        numbers: What is drawn.
    """

    kind: ClassVar[str] = "chart"
    name: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    numbers: Table


@dataclass(frozen=True)
class Picture:
    """A test image.

    Attributes:
        source: PNG, as a data URI.
        text: What it shows, for those who do not see it.
        label: Its right class.
        lines: What is told below it: who chose what, and whether that is right.
    """

    source: str
    text: str
    label: str
    lines: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Gallery:
    """Test images of one kind."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Listing:
    """Text that is kept as it was typed: commands, settings."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str


Block = Paragraph | Figures | Chart | Gallery | Listing


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: Unique; letters and dashes.
        title: Its heading.
        blocks: In order.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Series:
    """How a variant looks in every chart.

    Attributes:
        number: Position of the variant among all.
        name: Of the variant.
        colour: A marker colour of `drawing`.
        variable: The page's name of that colour.
        marker: Of its points, as matplotlib calls it.
        glyph: The same as a character.
        dashes: Of its lines, as matplotlib calls them.
    """

    number: int
    name: str
    colour: str
    variable: str
    marker: str
    glyph: str
    dashes: str


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: Of the page.
        headline: One sentence: what was shown.
        facts: Name -> value: data, seeds, device and such.
        sections: In order.
        series: How each variant is drawn.
        rows: The variants' numbers, ready for JSON.
        left_out: What is not in the report, and why; a sentence each.
    """

    title: str
    headline: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]
    series: tuple[Series, ...]
    rows: Sequence[Mapping[str, Any]]
    left_out: tuple[str, ...] = field(default=())
