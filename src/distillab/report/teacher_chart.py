"""The chart that holds students against their teacher: where it is wrong, where it is right, how often they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillab.evaluation.metrics import wilson_interval
from distillab.report.charts import HALF, THIRD, intervals
from distillab.report.document import Chart, Series
from distillab.report.drawing import themed
from distillab.tables import Column, Table, number, percent


@dataclass(frozen=True)
class BesideTeacher:
    """One run of a row held against its teacher on the test images.

    Attributes:
        num_wrong: Images that the teacher gets wrong.
        right_where_wrong: Those of them that the model gets right.
        num_right: Images that the teacher gets right.
        right_where_right: Those of them that the model gets right.
        agreement: Share of images for which both choose the same class, 0..1.
    """

    num_wrong: int
    right_where_wrong: int
    num_right: int
    right_where_right: int
    agreement: float


@themed()
def teacher_chart(
    beside: Mapping[int, BesideTeacher], rows: Sequence[Mapping[str, Any]], series: Sequence[Series]
) -> Chart:
    """How students do where their teacher is wrong and where it is right, and how often they say the same.

    Args:
        beside: By number of the row; at least one.
        rows: All rows.
        series: How each is drawn.
    """
    looks = [series[n] for n in beside]
    shares = [
        {
            "method": rows[n]["method"],
            "wrong": _share(one.right_where_wrong, one.num_wrong),
            "right": _share(one.right_where_right, one.num_right),
            "agreement": (one.agreement, None),
        }
        for n, one in beside.items()
    ]
    heads = {
        "wrong": "Top-1 where it is wrong, %",
        "right": "Top-1 where it is right, %",
        "agreement": "Chooses as it does, %",
    }
    told = [key for key in heads if any(row[key][0] is not None for row in shares)]
    width = THIRD if len(told) > 2 else HALF
    panels = [
        intervals(f"teacher-{key}", heads[key], shares, looks, lambda row, key=key: row[key], width=width)  # type: ignore[misc]
        for key in told
    ]
    errors = " or ".join(f"{count:,}" for count in sorted({one.num_wrong for one in beside.values()}))
    columns = ("teacher wrong: right", "of", "teacher right: right", "of", "agreement %")
    over_seeds = ("over seeds: where wrong %", "agreement %", "divergence, nats")
    return Chart(
        "teacher",
        "Where the teacher is wrong, and where it is right",
        f"The teacher errs on {errors} test images; to lose less there is what merit-based methods claim. "
        "Points are the first run of each row, bars 95 % intervals of it on these images.",
        tuple(panels),
        Table(
            (Column("method"), *(Column(head, numeric=True) for head in (*columns, *over_seeds))),
            tuple(_cells(rows[n], one) for n, one in beside.items()),
        ),
    )


def _share(count: int, total: int) -> tuple[float | None, Sequence[float] | None]:
    """A share with its interval; nothing of nothing."""
    return (count / total, wilson_interval(count / total, total)) if total else (None, None)


def _cells(row: Mapping[str, Any], one: BesideTeacher) -> tuple[str, ...]:
    return (
        row["method"],
        f"{one.right_where_wrong:,}",
        f"{one.num_wrong:,}",
        f"{one.right_where_right:,}",
        f"{one.num_right:,}",
        percent(one.agreement),
        percent(row["top1_where_teacher_wrong"]),
        percent(row["teacher_agreement"]),
        number(row["teacher_divergence"], 3),
    )
