"""Tables as plain data: what a run, a comparison or a listing shows, before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


_RESULT_COLUMNS = (
    Column("method"),
    Column("model"),
    Column("top-1 %", numeric=True),
    Column("NLL", numeric=True),
    Column("ECE %", numeric=True),
    Column("agreement %", numeric=True),
    Column("params M", numeric=True),
    Column("MACs M", numeric=True),
    Column("seconds", numeric=True),
)


def results_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Models beside each other, one a row.

    Args:
        rows: Each with `method`, `model`, `top1`, `nll`, `ece`, `teacher_agreement` (fractions 0..1), `parameters`,
            `macs` (counts) and `seconds`; what is absent or None is shown as a dash, and a
            column of dashes is left out.
    """
    table = Table(
        _RESULT_COLUMNS,
        tuple(
            (
                str(row.get("method") or ABSENT),
                str(row.get("model") or ABSENT),
                percent(row.get("top1")),
                number(row.get("nll"), 3),
                percent(row.get("ece")),
                percent(row.get("teacher_agreement")),
                millions(row.get("parameters")),
                millions(row.get("macs")),
                number(row.get("seconds"), 1),
            )
            for row in rows
        ),
    )
    return without_empty_columns(table)


def without_empty_columns(table: Table) -> Table:
    """A table less the columns that have no value in any row."""
    kept = [i for i in range(len(table.columns)) if any(row[i] != ABSENT for row in table.rows)]
    return Table(tuple(table.columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in table.rows))


def run_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a single run, for `results_table`: its teacher, its assistant, and who was trained.

    Args:
        summary: The content of `result.json`.
    """
    rows = [
        _row(role, part["model"], part.get("test"), part.get("cost"), part.get("timing", {}).get("seconds"))
        for role in ("teacher", "assistant")
        if (part := summary.get(role))
    ]
    trained = summary.get("method") or summary.get("role")
    rows.append(_row(trained, summary["model"], summary.get("test"), summary.get("cost"), summary["timing"]["seconds"]))
    return rows


def _row(
    method: Any, model: Any, test: Mapping[str, Any] | None, cost: Mapping[str, Any] | None, seconds: float | None
) -> dict[str, Any]:
    return {"method": method, "model": model, **(test or {}), **(cost or {}), "seconds": seconds}


def plan_tables(plan: Mapping[str, Any]) -> list[Table | str]:
    """What `--dry-run` shows: data, models, stages, and how long it would take.

    Args:
        plan: What `preview` gave.
    """
    data = {**plan["data"], "images": "x".join(map(str, plan["data"]["images"]))}
    return [
        records_table([data], tuple(data)),
        records_table(plan["models"], ("role", "model", "parameters", "macs")),
        records_table(plan["stages"], ("title", "method", "epochs", "steps", "seconds")),
        f"about {plan['seconds']:.0f} s of training; nothing was trained",
    ]


def comparison_tables(result: Mapping[str, Any]) -> list[Table | str]:
    """What a comparison has shown, then what else is known of its rows; twice for each setting that is varied beyond
    the methods' own.

    Args:
        result: What `comparison_result` gave.
    """
    parts: list[Table | str] = []
    names = list(dict.fromkeys(row["table"] for row in result["rows"]))
    for name in names:
        rows = [row for row in result["rows"] if row["table"] == name]
        shown = Table(_SHOWN_COLUMNS, tuple(map(_shown_row, rows)))
        known = Table(_KNOWN_COLUMNS, tuple(map(_known_row, rows)))
        parts += [
            *([f"\n{name or 'default'}"] if len(names) > 1 else []),
            without_empty_columns(shown),
            without_empty_columns(known),
        ]
    return parts


_SHOWN_COLUMNS = (
    Column("method"),
    Column("top-1 %", numeric=True),
    Column("95 % interval", numeric=True),
    Column("vs alone", numeric=True),
    Column("95 % interval", numeric=True),
    Column("p", numeric=True),
    Column("shown"),
)

_KNOWN_COLUMNS = (
    Column("method"),
    Column("seeds", numeric=True),
    Column("std", numeric=True),
    Column("last step %", numeric=True),
    Column("best epoch %", numeric=True),
    Column("NLL", numeric=True),
    Column("agreement %", numeric=True),
    Column("seconds", numeric=True),
    Column("points/min", numeric=True),
)


def _shown_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    versus = row["versus_alone"] or {}
    return (
        row["method"],
        points(row["top1_mean"]),
        interval(row["top1_interval"]),
        points(versus.get("difference"), signed=True),
        interval(versus.get("interval"), signed=True),
        probability(versus.get("p_value")),
        str(versus.get("verdict", ABSENT)).replace("no difference shown", "nothing"),
    )


def _known_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        str(row["num_seeds"]),
        points(row["top1_std"]),
        points(row["top1_last_mean"]),
        points(row["top1_best_mean"]),
        number(row["nll"], 3),
        percent(row["teacher_agreement"]),
        number(row["seconds_mean"], 1),
        number((row["versus_alone"] or {}).get("points_per_extra_minute"), 1),
    )


def estimate_tables(todo: Mapping[str, Any]) -> list[Table | str]:
    """What a comparison will take.

    Args:
        todo: What `estimate` gave.
    """
    columns = (Column("row"), Column("runs", numeric=True), Column("left", numeric=True), Column("time each"))
    rows = tuple(
        (
            f"{row['row']} ({row['table']})" if row["table"] else row["row"],
            str(row["runs"]),
            str(row["left"]),
            duration(row["seconds"]) if row["left"] else ABSENT,
        )
        for row in todo["rows"]
    )
    how = (
        "one after another, less side by side as they will go" if todo["side_by_side"] else "if nothing else runs here"
    )
    return [
        Table(columns, rows),
        f"{todo['runs_left']} of {todo['runs']} runs are left: about {duration(todo['seconds'])} {how},"
        f" {duration(todo['teacher_seconds'])} of it to ask the teacher, and up to"
        f" {todo['bytes'] / 2**20:,.0f} MiB of disk, less than {todo['cache_bytes'] / 2**30:.1f} GiB more for the"
        " teacher's logits",
    ]


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
    """A count in millions with two decimals."""
    return ABSENT if count is None else f"{count / 1e6:,.2f}"


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
