"""The chart that holds students against their teacher: where it is wrong, where it is right, how often they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from distillab.evaluation.metrics import wilson_interval
from distillab.report.charts import HALF, THIRD, intervals
from distillab.report.document import Chart, Series
from distillab.report.drawing import themed
from distillab.results.sentences import claim
from distillab.results.statistics import Difference, Run, Runs, differences, summarise
from distillab.tables import Column, Table, interval, number, percent, points, probability


@dataclass(frozen=True)
class BesideTeacher:
    """A run of a row held against its teacher on the test images.

    Attributes:
        seed: Of the run.
        num_wrong: Images that the teacher gets wrong.
        right_where_wrong: Those of them that the model gets right.
        num_right: Images that the teacher gets right.
        right_where_right: Those of them that the model gets right.
        agreement: Share of images for which both choose the same class, 0..1.
    """

    seed: int
    num_wrong: int
    right_where_wrong: int
    num_right: int
    right_where_right: int
    agreement: float


Beside = Mapping[int, Sequence[BesideTeacher]]
"""By number of the row; each has a run at least."""


@themed()
def teacher_chart(beside: Beside, rows: Sequence[Mapping[str, Any]], series: Sequence[Series]) -> Chart:
    """How students do where their teacher is wrong and where it is right, and how often they say the same.

    Args:
        beside: Of some rows, one at least.
        rows: All rows.
        series: How each is drawn.
    """
    looks = [series[n] for n in beside]
    shares = [
        {
            "method": rows[n]["method"],
            "wrong": _share([(one.seed, one.right_where_wrong, one.num_wrong) for one in runs]),
            "right": _share([(one.seed, one.right_where_right, one.num_right) for one in runs]),
            "agreement": (fmean(one.agreement for one in runs), None),
        }
        for n, runs in beside.items()
    ]
    heads = {
        "wrong": "Top-1 where the teacher is wrong, %",
        "right": "Top-1 where the teacher is right, %",
        "agreement": "Agreement with the teacher, %",
    }
    told = [key for key in heads if any(row[key][0] is not None for row in shares)]
    width = THIRD if len(told) > 2 else HALF
    panels = [
        intervals(f"teacher-{key}", heads[key], shares, looks, lambda row, key=key: row[key], width=width)  # type: ignore[misc]
        for key in told
    ]
    errors = " or ".join(f"{count:,}" for count in sorted({one.num_wrong for runs in beside.values() for one in runs}))
    columns = (
        *("top-1 % where wrong", "versus alone", "its interval", "p (Holm)"),
        *("top-1 % where right", "agreement %", "KL from the teacher, nats"),
    )
    found = _versus_alone(beside, rows)
    return Chart(
        "teacher",
        "Where the teacher is wrong, and where it is right",
        f"The teacher errs on {errors} test images; merit-based methods (mbd) claim that they lose less there. "
        f"{_claims(found, rows)}Marks are means over seeds, bars 95 % intervals; of a single run they are over these "
        "images. Agreement is the share of all test images for which both choose the same class, right or wrong.",
        tuple(panels),
        Table(
            (Column("method"), *(Column(head, numeric=True) for head in columns)),
            tuple(_cells(rows[n], share, found.get(n)) for n, share in zip(beside, shares, strict=True)),
        ),
    )


def _by_seed(counts: Sequence[tuple[int, int, int]]) -> dict[int, Run]:
    """Seed -> share, a mean over its runs with other teachers; nothing of nothing."""
    found: dict[int, list[float]] = {}
    for seed, count, total in counts:
        if total:
            found.setdefault(seed, []).append(count / total)
    return {seed: Run(fmean(shares), seconds=None) for seed, shares in found.items()}


def _share(counts: Sequence[tuple[int, int, int]]) -> tuple[float | None, Sequence[float] | None]:
    """A share with its interval: over seeds, or of one run's images."""
    runs = _by_seed(counts)
    summary = summarise(runs.values())
    if len(runs) != 1:
        return summary.mean, summary.interval
    _, count, total = next(one for one in counts if one[2])
    return summary.mean, wilson_interval(count / total, total)


def _versus_alone(beside: Beside, rows: Sequence[Mapping[str, Any]]) -> dict[int, Difference]:
    """By number of the row, its accuracy where the teacher is wrong less that of its table's student alone."""
    found: dict[int, Difference] = {}
    for table in dict.fromkeys(rows[n]["table"] for n in beside):
        mine = [n for n in beside if rows[n]["table"] == table]
        runs: Runs = {
            str(n): _by_seed([(one.seed, one.right_where_wrong, one.num_wrong) for one in beside[n]]) for n in mine
        }
        alone = [n for n in mine if rows[n]["role"].endswith("alone")]
        if len(alone) == 1:
            others = [n for n in mine if n not in alone]
            pairs = differences(runs, [(str(n), str(alone[0])) for n in others])
            found |= dict(zip(others, pairs, strict=True))
    return found


def _claims(found: Mapping[int, Difference], rows: Sequence[Mapping[str, Any]]) -> str:
    """What is shown of accuracy where the teacher is wrong, in words; "" where nothing could be tested."""
    tested = {n: difference for n, difference in found.items() if difference.p_value is not None}
    if not tested:
        return ""
    told = [
        claim(replace(difference, method=rows[n]["method"]), "the student alone")
        for n, difference in tested.items()
        if difference.verdict != "no difference shown"
    ]
    if told:
        return f"There {' '.join(told)} "
    return "No method that could be tested is shown to differ from the student alone there. "


def _cells(row: Mapping[str, Any], share: Mapping[str, Any], versus: Difference | None) -> tuple[str, ...]:
    return (
        row["method"],
        points(share["wrong"][0]),
        points(versus.mean if versus else None, signed=True),
        interval(versus.interval if versus else None, signed=True),
        probability(versus.p_value if versus else None),
        points(share["right"][0]),
        percent(share["agreement"][0]),
        number(row["teacher_divergence"], 3),
    )
