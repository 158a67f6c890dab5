"""Tables as plain data, and numbers as their cells show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "-"
"""Stands in a cell that has no value."""


@dataclass(frozen=True)
class Column:
    """Head of a column.

    Attributes:
        title: With the unit, where there is one.
        numeric: Whether its cells are aligned to the right.
    """

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows of finished text.

    Attributes:
        columns: Heads.
        rows: As many cells each as there are columns.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """The table as aligned lines, as wide as they need to be."""
        lines = [tuple(column.title for column in self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column.numeric else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        )


def without_empty_columns(table: Table) -> Table:
    """A table less the columns that have no value in any row."""
    kept = [i for i in range(len(table.columns)) if any(row[i] != ABSENT for row in table.rows)]
    return Table(tuple(table.columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in table.rows))


def records_table(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A listing: the named values of every record.

    Args:
        records: What is listed. Counts are shown with separators, lists joined by semicolons.
        columns: Keys of the records, which are the heads as well.
    """
    return Table(
        tuple(
            Column(name, numeric=any(isinstance(record.get(name), int | float) for record in records))
            for name in columns
        ),
        tuple(tuple(_cell(record.get(name)) for name in columns) for record in records),
    )


def _cell(value: Any) -> str:
    if value is None or value == () or value == []:
        return ABSENT
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return str(value)


def percent(fraction: float | None) -> str:
    """A fraction 0..1 as percent with one decimal."""
    return ABSENT if fraction is None else f"{100 * fraction:.1f}"


def points(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction 0..1, or a difference of two, as percentage points with two decimals."""
    return ABSENT if fraction is None else f"{100 * fraction:{'+' if signed else ''}.2f}"


def interval(bounds: Sequence[float] | None, *, signed: bool = False) -> str:
    """Low and high bound, as `points`."""
    return ABSENT if bounds is None else " to ".join(points(bound, signed=signed) for bound in bounds)


def millions(count: float | None) -> str:
    """A count in millions with two decimals, or as many as a small one needs for two digits."""
    if count is None:
        return ABSENT
    decimals = 2 if count >= 100_000 or not count else 1 - math.floor(math.log10(count / 1e6))
    return f"{count / 1e6:,.{decimals}f}"


def amount(count: int, noun: str) -> str:
    """A number of things in words: "1 epoch", "2 epochs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def probability(p: float | None) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, 3)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def number(value: float | None, decimals: int) -> str:
    """A number with so many decimals."""
    return ABSENT if value is None else f"{value:.{decimals}f}"
