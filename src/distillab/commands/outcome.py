"""What verbs show of runs: what came of them, or what they would do."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillab.config import DistillConfig, TrainConfig
from distillab.errors import NonFiniteLossError
from distillab.tables import ABSENT, Column, Table, millions, number, percent, records_table, without_empty_columns
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
