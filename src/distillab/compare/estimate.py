"""How long a comparison takes, and how much room."""

from __future__ import annotations

from typing import Any

from distillab.compare.conduct import is_complete
from distillab.compare.plan import ComparisonPlan, PlannedRun
from distillab.compare.tuning import trials_made, with_tuned
from distillab.config import to_toml
from distillab.preview import preview

_BYTES_A_PARAMETER = 4
_COPIES_LEFT = 2  # the last weights and the best ones
_COPIES_SAVED = 4  # weights, moments, average and best ones, in each of the checkpoints that are kept


def estimate(plan: ComparisonPlan, *, allow_code: bool) -> dict[str, Any]:
    """What is left to do of a plan: runs, trials of tuning, time and disk space.

    Runs that differ in nothing but their seed, or in what tuning will find, are built and tried once. The teacher's
    part is counted in every run, though those of one group share it: so the time is an upper bound, but for what
    validation and tests take.

    Args:
        plan: Some of its runs may be complete.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        "rows" ({"table", "row", "runs", "seconds"}, the trials of a row standing in a table "tuning"), "runs" and
        "runs_left", "seconds" and "bytes" of those that are left; ready for JSON.

    Raises:
        DistillabError: Whatever a run would stumble over before its first step.
    """
    tried = _Tried(plan, allow_code=allow_code)
    seconds = sum(
        preview(teacher.model_copy(update={"output": None}), allow_code=allow_code)["seconds"]
        for teacher in plan.teachers
        if teacher.output is not None and not is_complete(teacher.output)
    )
    num_bytes = 0
    rows: list[dict[str, Any]] = []
    whole = with_tuned(plan, {row: {} for row in plan.rows}) if plan.tune else plan
    trials = trials_made(plan) if plan.tune else {}
    runs_left = 0
    for table, row in whole.rows:
        runs = [run for run in whole.runs if (run.table, run.row) == (table, row)]
        left = [run for run in runs if not is_complete(run.folder)]
        made = trials.get((table, row))
        trials_left = 0 if made is None else max(0, plan.tune - made)
        of_one, bytes_of_one = tried.seconds_and_bytes(runs[0]) if left or trials_left else (0.0, 0)
        rows.append({"table": table, "row": row, "runs": len(runs), "seconds": of_one})
        if made is not None:
            named = ", ".join(filter(None, (table, "tuning")))
            rows.append({"table": named, "row": row, "runs": plan.tune, "seconds": of_one})
        runs_left += len(left) + trials_left
        seconds += of_one * (len(left) + trials_left)
        num_bytes += bytes_of_one * len(left)
    total = sum(row["runs"] for row in rows)
    return {"rows": rows, "runs": total, "runs_left": runs_left, "seconds": seconds, "bytes": num_bytes}


class _Tried:
    """Runs that were built and tried; those of equal settings but for the seed once."""

    def __init__(self, plan: ComparisonPlan, *, allow_code: bool) -> None:
        self._untaught = plan.teachers[0].model if plan.teachers else None
        self._num_groups = max(1, len(plan.groups))
        self._allow_code = allow_code
        self._seen: dict[str, dict[str, Any]] = {}

    def seconds_and_bytes(self, run: PlannedRun) -> tuple[float, int]:
        """What the run takes, without its teacher's training."""
        changes: dict[str, Any] = {"output": None, "seed": 0}
        if self._untaught is not None and run.method != "alone":
            changes["teacher"] = self._untaught  # built, not loaded: its weights may not be there yet
        config = run.config.model_copy(update=changes)
        key = to_toml(config)
        if key not in self._seen:
            self._seen[key] = preview(config, allow_code=self._allow_code)
        seen = self._seen[key]
        seconds = sum(stage["seconds"] for stage in seen["stages"] if stage["role"] != "teacher")
        parameters = sum(model["parameters"] for model in seen["models"] if model["role"] != "teacher")
        copies = _COPIES_LEFT + _COPIES_SAVED * run.config.checkpoint.keep / self._num_groups
        return seconds, int(parameters * _BYTES_A_PARAMETER * copies)
