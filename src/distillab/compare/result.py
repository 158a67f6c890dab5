"""What a comparison has shown: tables of rows over seeds, and what may be said of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from distillab.compare.conduct import is_complete, read_result
from distillab.compare.plan import ComparisonPlan
from distillab.report.statistics import Run, as_rows, compare, sentences

RESULT_FORMAT = 1


def comparison_result(plan: ComparisonPlan) -> dict[str, Any]:
    """The tables of a comparison, from the results that its runs have left.

    Args:
        plan: Carried out; a run that diverged has left no result and is not counted.

    Returns:
        "rows" (one a row, see `statistics.as_rows`, with its "table", "model", mean "nll", "ece", "agreement",
        "top1_last_mean" of the last step's weights where their average is the result, "top1_best_mean" of those that
        validation chose, "parameters", "macs", "run_dirs", and, of a tuned row, its "tuned" settings and how many
        "trials" chose them), "sentences", "winner" by table, and "output"; ready for JSON.

    Raises:
        CheckpointError: A result is damaged.
    """
    rows: list[dict[str, Any]] = []
    said: list[str] = []
    winners: dict[str, str | None] = {}
    for table, runs in _runs(plan).items():
        found = compare(runs)
        winners[table] = found.winner
        said += [f"{table}: {sentence}" if table else sentence for sentence in sentences(found)]
        rows += [{"table": table, **row, **_means(plan, table, row["method"])} for row in as_rows(found)]
    return {
        "format_version": RESULT_FORMAT,
        "rows": rows,
        "sentences": [*said, *_tuned_in_words(plan)],
        "winner": winners,
        "output": str(plan.folder),
    }


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows for a spreadsheet: what is nested gets names such as `versus_alone.difference`."""
    flat = [dict(_flat(row, "")) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _runs(plan: ComparisonPlan) -> dict[str, dict[str, dict[int, Run]]]:
    """Accuracy and time by table, row and seed, each a mean over the teachers.

    With another teacher a seed's student has the same initial weights and order, and the student alone is the very
    same: counted as runs of their own they would make every interval too narrow. A seed that misses a teacher is left
    out.
    """
    found: dict[str, dict[str, dict[int, list[Run]]]] = {}
    for run in plan.runs:
        seeds = found.setdefault(run.table, {}).setdefault(run.row, {})
        if is_complete(run.folder):
            result = read_result(run.folder)
            seeds.setdefault(run.seed, []).append(Run(result["test"]["top1"], result["timing"]["seconds"]))
    teachers = len({run.teacher for run in plan.runs})
    return {
        table: {
            row: {seed: _mean(runs) for seed, runs in seeds.items() if len(runs) == teachers}
            for row, seeds in rows.items()
        }
        for table, rows in found.items()
    }


def _mean(runs: list[Run]) -> Run:
    return Run(fmean(run.top1 for run in runs), fmean(run.seconds for run in runs))


def _means(plan: ComparisonPlan, table: str, row: str) -> dict[str, Any]:
    """What else is known of a row: means over its seeds; None where nothing is."""
    of_row = [run for run in plan.runs if (run.table, run.row) == (table, row)]
    results = [read_result(run.folder) for run in of_row if is_complete(run.folder)]

    def mean(*path: str) -> float | None:
        values = [value for result in results if (value := _at(result, path)) is not None]
        return sum(values) / len(values) if values else None

    return {
        "model": results[0]["model"] if results else None,
        "nll": mean("test", "nll"),
        "ece": mean("test", "ece"),
        "teacher_agreement": mean("test", "teacher_agreement"),
        "top1_where_teacher_wrong": mean("test", "top1_where_teacher_wrong"),
        "top1_last_mean": mean("last", "test", "top1"),
        "top1_best_mean": mean("best", "test", "top1"),
        "parameters": mean("cost", "parameters"),
        "macs": mean("cost", "macs"),
        "run_dirs": [str(run.folder.relative_to(plan.folder)) for run in of_row],
        "tuned": of_row[0].tuned,
        "trials": 0 if of_row[0].tuned is None else plan.tune,
    }


def _tuned_in_words(plan: ComparisonPlan) -> list[str]:
    """What tuning has found, a sentence a row."""
    found = {
        f"{run.table}: {run.row}": ", ".join(f"{name} {value:.3g}" for name, value in run.tuned.items())
        for run in plan.runs
        if run.tuned is not None
    }
    return [f"{row} is trained with {settings}, the best of {plan.tune} trials." for row, settings in found.items()]


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _flat(part, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        return [(name, " ".join(map(str, value)))]
    return [(name, value)]
