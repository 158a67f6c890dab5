"""The columns that rows of a comparison are shown in, on a terminal and in a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distillab.tables import (
    ABSENT,
    Column,
    Table,
    interval,
    millions,
    number,
    percent,
    points,
    probability,
    without_empty_columns,
)

Row = Mapping[str, Any]


def rows_table(rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """Rows in some of the columns that there are; one without any value is left out.

    Args:
        rows: See `rows.Counted.rows`.
        columns: Keys of `_COLUMNS`.
    """
    chosen = [_COLUMNS[name] for name in columns]
    return without_empty_columns(
        Table(tuple(column for column, _ in chosen), tuple(tuple(cell(row) for _, cell in chosen) for row in rows))
    )


def _versus(row: Row) -> Row:
    return row["versus_alone"] or {}


def _verdict(row: Row) -> str:
    verdict = str(_versus(row).get("verdict") or ABSENT)
    return "nothing" if verdict == "no difference shown" else verdict


_COLUMNS: Mapping[str, tuple[Column, Callable[[Row], str]]] = {
    "method": (Column("method"), lambda row: row["method"]),
    "model": (Column("model"), lambda row: row["model"] or ABSENT),
    "seeds": (Column("seeds", numeric=True), lambda row: str(row["num_seeds"])),
    "top1": (Column("top-1 %", numeric=True), lambda row: points(row["top1_mean"])),
    "std": (Column("std", numeric=True), lambda row: points(row["top1_std"])),
    "interval": (Column("95 % interval", numeric=True), lambda row: interval(row["top1_interval"])),
    "versus_alone": (
        Column("versus alone", numeric=True),
        lambda row: points(_versus(row).get("difference"), signed=True),
    ),
    "versus_interval": (
        Column("its interval", numeric=True),
        lambda row: interval(_versus(row).get("interval"), signed=True),
    ),
    "p_value": (Column("p (Holm)", numeric=True), lambda row: probability(_versus(row).get("p_value"))),
    "shown": (Column("shown"), _verdict),
    "last": (Column("last step %", numeric=True), lambda row: points(row["top1_last_mean"])),
    "best": (Column("best epoch %", numeric=True), lambda row: points(row["top1_best_mean"])),
    "nll": (Column("NLL", numeric=True), lambda row: number(row["nll"], 3)),
    "ece": (Column("ECE %", numeric=True), lambda row: percent(row["ece"])),
    "agreement": (Column("agreement %", numeric=True), lambda row: percent(row["teacher_agreement"])),
    "parameters": (Column("params M", numeric=True), lambda row: millions(row["parameters"])),
    "seconds": (Column("seconds", numeric=True), lambda row: number(row["seconds_mean"], 1)),
    "gain": (
        Column("points/min", numeric=True),
        lambda row: number(_versus(row).get("points_per_extra_minute"), 2),
    ),
}
