"""How long a comparison takes, and how much room."""

from __future__ import annotations

from typing import Any

from distillab.compare.conduct import is_complete
from distillab.compare.plan import ComparisonPlan
from distillab.preview import preview

_BYTES_A_PARAMETER = 4
_COPIES_LEFT = 2  # the last weights and the best ones
_COPIES_SAVED = 4  # weights, moments, average and best ones, in each of the checkpoints that are kept


def estimate(plan: ComparisonPlan, *, allow_code: bool) -> dict[str, Any]:
    """What is left to do of a plan: runs, time and disk space.

    Each row is built and tried once, with the teacher's part counted in every run, though those of one group share it:
    so the time is an upper bound, but for what validation and tests take.

    Args:
        plan: Some of its runs may be complete.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        "rows" ({"table", "row", "runs", "seconds"}), "runs" and "runs_left", "seconds" and "bytes" of those that are
        left; ready for JSON.

    Raises:
        DistillabError: Whatever a run would stumble over before its first step.
    """
    tried: dict[tuple[str, str], dict[str, Any]] = {}
    seconds = 0.0
    num_bytes = 0
    for teacher in plan.teachers:
        if teacher.output is not None and not is_complete(teacher.output):
            seconds += preview(teacher.model_copy(update={"output": None}), allow_code=allow_code)["seconds"]
    untaught = plan.teachers[0].model if plan.teachers else None
    left = [run for run in plan.runs if not is_complete(run.folder)]
    for run in left:
        key = (run.table, run.row)
        if key not in tried:
            changes: dict[str, Any] = {"output": None}
            if untaught is not None and run.method != "alone":
                changes["teacher"] = untaught  # built, not loaded: its weights may not be there yet
            tried[key] = preview(run.config.model_copy(update=changes), allow_code=allow_code)
        seen = tried[key]
        seconds += sum(stage["seconds"] for stage in seen["stages"] if stage["role"] != "teacher")
        parameters = sum(model["parameters"] for model in seen["models"] if model["role"] != "teacher")
        copies = _COPIES_LEFT + _COPIES_SAVED * run.config.checkpoint.keep / max(1, len(plan.groups))
        num_bytes += int(parameters * _BYTES_A_PARAMETER * copies)
    rows = [
        {
            "table": table,
            "row": row,
            "runs": sum((run.table, run.row) == (table, row) for run in plan.runs),
            "seconds": tried[table, row]["seconds"] if (table, row) in tried else 0.0,
        }
        for table, row in plan.rows
    ]
    return {"rows": rows, "runs": len(plan.runs), "runs_left": len(left), "seconds": seconds, "bytes": num_bytes}
