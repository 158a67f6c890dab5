"""What `train` and `distill` show in the end, or would do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillab.config import DistillConfig, TrainConfig
from distillab.errors import NonFiniteLossError
from distillab.report.table import Table, plan_tables, results_table, run_rows
from distillab.terminal import Screen

if TYPE_CHECKING:
    from distillab.outcome import RunResult


def show_run(screen: Screen, result: RunResult, *sentences: str) -> None:
    """Show what a run has come to.

    Args:
        screen: Where.
        result: Of the run.
        sentences: What else there is to say.
    """
    parts: list[Table | str] = [results_table(run_rows(result.summary)), result.summary["noise"], *sentences]
    if result.run_dir is not None:
        parts.append(f"run folder: {result.run_dir}")
    screen.show({**result.summary, "run_dir": result.run_dir}, *parts)


def show_runs(screen: Screen, outcomes: Sequence[RunResult | NonFiniteLossError]) -> None:
    """Show what some runs have come to that were carried out together.

    Raises:
        NonFiniteLossError: One of them diverged; the others are shown before.
    """
    diverged = [outcome for outcome in outcomes if isinstance(outcome, NonFiniteLossError)]
    results = [outcome for outcome in outcomes if not isinstance(outcome, NonFiniteLossError)]
    if len(outcomes) == 1 and results:
        show_run(screen, results[0])
    elif results:
        rows = [row for result in results for row in run_rows(result.summary)]
        runs = [{**result.summary, "run_dir": result.run_dir} for result in results]
        screen.show({"runs": runs}, results_table(rows), results[0].summary["noise"])
    if diverged:
        raise diverged[0]


def show_plan(screen: Screen, config: TrainConfig | DistillConfig, allow_code: bool) -> None:
    """Build a run, and show what it would do."""
    from distillab.preview import preview

    with screen.watching() as observer:
        plan = preview(config, allow_code=allow_code, observer=observer)
    screen.show(plan, *plan_tables(plan))


def started_with() -> list[str]:
    """The words that a run was started with, for its record."""
    return ["distillab", *sys.argv[1:]]
