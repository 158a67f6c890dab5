"""What a comparison has shown: tables of rows over seeds, and what may be said of them."""

from __future__ import annotations

from typing import Any

from distillab.compare.finished import home_of, is_complete
from distillab.compare.plan import ComparisonPlan
from distillab.results.comparison import RESULT_FORMAT
from distillab.results.rows import Row, counted
from distillab.results.run_record import read_result


def comparison_result(plan: ComparisonPlan) -> dict[str, Any]:
    """The tables of a comparison, from the results that its runs have left.

    Args:
        plan: Carried out; a run that diverged has left no result and is not counted.

    Returns:
        "teachers" ("model", "top1", "nll", "ece" on the test images of each), "rows" and "sentences" (see
        `rows.Counted`), "winner" by table, and "output"; ready for JSON.

    Raises:
        CheckpointError: A result is damaged.
    """
    found = counted([_row(plan, table, name) for table, name in plan.rows])
    return {
        "format_version": RESULT_FORMAT,
        "teachers": _teachers(plan),
        "rows": found.rows,
        "sentences": [*found.sentences, *found.tuning],
        "winner": found.winner,
        "output": str(plan.folder),
    }


def _teachers(plan: ComparisonPlan) -> list[dict[str, Any]]:
    if plan.teachers:
        found = [(one.model, one.test) for one in map(read_result, map(home_of, plan.teachers))]
    else:  # one was given, and tested where somebody learnt from it
        results = (read_result(run.folder) for run in plan.runs if is_complete(run.folder))
        found = [(one.teacher.model, one.teacher.test) for one in results if one.teacher][:1]
    return [{"model": model, "top1": test.top1, "nll": test.nll, "ece": test.ece} for model, test in found]


def _row(plan: ComparisonPlan, table: str, name: str) -> Row:
    runs = [run for run in plan.runs if (run.table, run.row) == (table, name)]
    return Row(
        table,
        name,
        tuple(read_result(run.folder) for run in runs if is_complete(run.folder)),
        tuple(str(run.folder.relative_to(plan.folder)) for run in runs),
        num_teachers=len({run.teacher for run in plan.runs}),
        tuned=runs[0].tuned,
        trials=0 if runs[0].tuned is None else plan.tune,
    )
