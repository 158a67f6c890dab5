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


def _versus(row: Row, baseline: str) -> Row:
    return row[f"versus_{baseline}"] or {}


def _verdict(row: Row, baseline: str) -> str:
    verdict = str(_versus(row, baseline).get("verdict") or ABSENT)
    return "nothing" if verdict == "no difference shown" else verdict


def _held_against(name: str) -> dict[str, tuple[Column, Callable[[Row], str]]]:
    """The columns of the difference to a baseline."""
    return {
        f"versus_{name}": (
            Column(f"versus {name}", numeric=True),
            lambda row: points(_versus(row, name).get("difference"), signed=True),
        ),
        f"{name}_interval": (
            Column("its interval", numeric=True),
            lambda row: interval(_versus(row, name).get("interval"), signed=True),
        ),
        f"{name}_p_value": (
            Column("p (Holm)", numeric=True),
            lambda row: probability(_versus(row, name).get("p_value")),
        ),
        f"{name}_shown": (Column("shown"), lambda row: _verdict(row, name)),
    }


def _rank(row: Row) -> str:
    if row["rank"] is None:
        return ABSENT
    best, worst = row["rank"]
    return str(best) if best == worst else f"{best} to {worst}"


_COLUMNS: Mapping[str, tuple[Column, Callable[[Row], str]]] = {
    "method": (Column("method"), lambda row: row["method"]),
    "model": (Column("model"), lambda row: row["model"] or ABSENT),
    "seeds": (Column("seeds", numeric=True), lambda row: str(row["num_seeds"])),
    "top1": (Column("top-1 %", numeric=True), lambda row: points(row["top1_mean"])),
    "std": (Column("std", numeric=True), lambda row: points(row["top1_std"])),
    "interval": (Column("95 % interval", numeric=True), lambda row: interval(row["top1_interval"])),
    **_held_against("alone"),
    **_held_against("st"),
    "rank": (Column("rank", numeric=True), _rank),
    "teachers": (
        Column("teachers", numeric=True),
        lambda row: str(row["num_teachers"]) if row["num_teachers"] > 1 else ABSENT,
    ),
    "last": (Column("last step %", numeric=True), lambda row: points(row["top1_last_mean"])),
    "best": (Column("best epoch %", numeric=True), lambda row: points(row["top1_best_mean"])),
    "nll": (Column("NLL", numeric=True), lambda row: number(row["nll"], 3)),
    "ece": (Column("ECE %", numeric=True), lambda row: percent(row["ece"])),
    "agreement": (Column("agreement %", numeric=True), lambda row: percent(row["teacher_agreement"])),
    "parameters": (Column("params M", numeric=True), lambda row: millions(row["parameters"])),
    "seconds": (Column("seconds", numeric=True), lambda row: number(row["seconds_mean"], 1)),
    "gain": (
        Column("points/min", numeric=True),
        lambda row: number(_versus(row, "alone").get("points_per_extra_minute"), 2),
    ),
}
