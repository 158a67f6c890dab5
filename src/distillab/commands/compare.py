"""`distillab compare`."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab.commands.flags import (
    COMMAND,
    EVERY_FIELD,
    AllowCode,
    DryRun,
    Injected,
    Json,
    Quiet,
    Recipe,
    flags_of,
)
from distillab.commands.outcome import started_with
from distillab.commands.report import end_with_report
from distillab.compare.config import ComparisonConfig
from distillab.config import DistillConfig
from distillab.errors import ConfigError
from distillab.recipe import load_recipe
from distillab.results.columns import rows_table
from distillab.settings import validated
from distillab.tables import ABSENT, Column, Table, duration, points
from distillab.terminal import Screen

RequestFlags = flags_of(ComparisonConfig)
CompareFlags = flags_of(DistillConfig, leaving_out=("method", "output", "distill"))


def compare(
    *,
    request: Annotated[RequestFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    ray: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            group=COMMAND,
            help="Spread it over the Ray cluster of RAY_ADDRESS, or one that is started here (extra: cluster).",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        Parameter(help="Folder for everything; one that is there goes on, or grows. Made under runs/ if not given."),
    ] = None,
    settings: Annotated[CompareFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    recipe: Recipe = None,
    allow_code: AllowCode = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Compare methods over seeds with the student alone, all at the same schedule and budget, and say what is shown."""
    from distillab.compare.cluster import on_cluster, same_device
    from distillab.compare.estimate import estimate
    from distillab.compare.run import plan_request, run_comparison

    screen.quiet, screen.json = quiet, json
    values = load_recipe(recipe, allow_code=allow_code) if recipe else {}
    flags: dict[str, Any] = settings or {}
    asked: dict[str, Any] = request or {}
    for name in [name for name in ("methods", "axis") if asked.get(name) == ()]:
        raise ConfigError(f"--{name} has no value", where=name, hint="give one or more, or leave it out")
    comparison = validated(ComparisonConfig, asked)
    if ray:
        flags = same_device(values, flags)
    plan = plan_request(comparison, values, flags, output)
    for note in plan.notes:
        screen.tell(note)
    if dry_run or not (quiet or ray):  # how fast the machines of a cluster are is not measured here
        todo = estimate(plan, allow_code=allow_code)
        if dry_run:
            screen.show({**todo, "output": str(plan.folder)}, *estimate_tables(todo), "nothing was trained")
            return
        for part in estimate_tables(todo):
            screen.tell(str(part))
    if ray:
        screen.tell(f"{len(plan.teachers)} teachers to train, {len(plan.runs)} runs in {len(plan.groups)} groups")
    with screen.watching() as observer, on_cluster(plan.folder, observer) if ray else nullcontext() as spread:
        result = run_comparison(
            comparison,
            values,
            flags,
            output=plan.folder,
            observer=observer,
            command=started_with(),
            allow_code=allow_code,
            spread=spread,
        )
    # What code the plan names was typed by hand, or let through where the recipe was read.
    show_comparison(screen, result, allow_code=allow_code or plan.names_code)


def show_comparison(screen: Screen, result: dict[str, Any], *, allow_code: bool) -> None:
    """Make the report of a comparison, and show what it has come to."""
    teachers = [f"teacher: {one['model']}, {points(one['top1'])} % of the test images" for one in result["teachers"]]
    parts = (*teachers, *comparison_tables(result), *result["sentences"], f"comparison: {result['output']}")
    try:
        result, report = end_with_report(screen, result, allow_code=allow_code)
    except KeyboardInterrupt:  # nobody wants to wait for the page; the table is there
        screen.show(result, *parts)
        raise
    screen.show(result, *parts, report)


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
        parts += [
            *([f"\n{name or 'default'}"] if len(names) > 1 else []),
            rows_table(
                rows,
                ("method", "top1", "interval", "versus_alone", "alone_interval", "alone_p_value", "alone_shown"),
            ),
            *(
                [rows_table(rows, ("method", "rank", "versus_st", "st_interval", "st_p_value", "st_shown"))]
                if any(row["versus_st"] for row in rows)
                else []
            ),
            rows_table(
                rows, ("method", "seeds", "teachers", "std", "last", "best", "nll", "agreement", "seconds", "gain")
            ),
        ]
    return parts


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
    logits_mib = round(todo["cache_bytes"] / 2**20)
    return [
        Table(columns, rows),
        f"{todo['runs_left']} of {todo['runs']} runs are left: about {duration(todo['seconds'])} {how},"
        f" {duration(todo['teacher_seconds'])} of it to ask the teacher, and up to"
        f" {todo['bytes'] / 2**20:,.0f} MiB of disk"
        + (f", and {logits_mib:,} MiB for the logits of teachers" if logits_mib else ""),
    ]
