"""A comparison from request to result: planned, carried out, counted, and able to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillab.compare.conduct import Spread, Words, conduct_groups, conduct_teachers, one_by_one
from distillab.compare.config import ComparisonConfig
from distillab.compare.finished import Expected, check_finished, is_complete
from distillab.compare.plan import ComparisonPlan, plan_comparison
from distillab.compare.result import comparison_result
from distillab.compare.tuning import require_optuna, tune, with_tuned
from distillab.config import anchored, merged
from distillab.errors import CheckpointError, Interrupted, StorageError, few_of
from distillab.recipe import checked
from distillab.results.comparison import REQUEST, RESULT, is_comparison
from distillab.results.rows import as_csv
from distillab.runtime.events import Note, Observer, RunStarted, silent
from distillab.runtime.files import check_plain, read_json_object, storage_error, write_text
from distillab.runtime.interruption import resume_command
from distillab.runtime.run_dir import RUNS, RunDir, new_run_name
from distillab.settings import validated
from distillab.tables import amount


def plan_request(
    comparison: ComparisonConfig, recipe: Mapping[str, Any], flags: Mapping[str, Any], output: Path | None
) -> ComparisonPlan:
    """The plan of a comparison.

    The number of threads is a part of it: where it is not given it is what this machine takes, for all machines.

    Args:
        comparison: What is compared.
        recipe: Values of a run's settings.
        flags: Laid over the recipe.
        output: Folder for everything; a new one under `runs/` if None.

    Raises:
        ConfigError: A method or setting is unknown, out of bounds, or without effect; or what tuning needs is missing.
        StorageError: The folder holds something else.
    """
    if comparison.tune:
        require_optuna()  # now, not when all teachers are trained
    folder = output or RUNS / new_run_name("comparison")
    _check_ours(folder)
    return plan_comparison(comparison, recipe, _with_threads(recipe, flags), folder)


def _with_threads(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with a number of threads: those that torch would take here where none is given."""
    if "threads" in recipe or "threads" in flags:
        return dict(flags)
    import torch

    return merged(flags, {"threads": torch.get_num_threads()})


def run_comparison(
    comparison: ComparisonConfig,
    recipe: Mapping[str, Any],
    flags: Mapping[str, Any],
    *,
    output: Path | None = None,
    observer: Observer = silent,
    command: Words = (),
    allow_code: bool = False,
    force: bool = False,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Carry out a comparison, or what is missing of it, and say what it shows.

    Args:
        comparison: What is compared.
        recipe: Values of a run's settings.
        flags: Laid over the recipe.
        output: Folder for everything: a new one, or one of a comparison that is to go on or to grow; a new one under
            `runs/` if None.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even with what would come out otherwise than it began.
        spread: Carries it out on other machines; None: here.

    Returns:
        See `comparison_result`; it is in `results.json` and `results.csv` as well.

    Raises:
        StorageError: The folder holds something else, or cannot be written.
        RunDirInUseError: Another process carries it out.
        DistillabError: Whatever a run may raise; what was complete stays.
    """
    flags = _with_threads(recipe, flags)  # written down: a machine that goes on may have other cores
    plan = plan_request(comparison, recipe, flags, output)
    home = _take(plan.folder)
    expected = Expected(observer, allow_code=allow_code)
    try:
        # Before it is written down what is wanted now: what is refused may go on with what was wanted before.
        check_finished(plan.teachers, expected)
        if all(teacher.output and is_complete(teacher.output) for teacher in plan.teachers):
            check_finished((run.config for run in plan.runs), expected)
        go_on = resume_command(plan.folder, allow_code=allow_code or plan.names_code)
        asked = {"recipe": anchored(recipe), "flags": anchored(flags)}
        request = {"comparison": comparison.model_dump(mode="json"), **asked}
        write_text(plan.folder / REQUEST, json.dumps(request, indent=2, default=str) + "\n")
        observer(RunStarted(plan.folder, go_on))
        try:
            spread = spread or one_by_one(observer)
            conduct_teachers(plan, spread, expected, command=command, allow_code=allow_code, force=force)
            if plan.tune:
                plan = with_tuned(plan, tune(plan, spread, observer=observer, allow_code=allow_code))
            conduct_groups(plan, spread, expected, command=command, allow_code=allow_code, force=force)
        except Interrupted as stop:
            stop.hint = go_on  # not only the runs that were under way
            raise
        result = comparison_result(plan)
        _tell_of_earlier_runs(plan.folder, result, observer)
        home.write_json(RESULT, result)
        write_text(plan.folder / "results.csv", as_csv(result["rows"]))
        return result
    finally:
        home.release()


def resume_comparison(
    folder: Path,
    *,
    observer: Observer = silent,
    command: Words = (),
    allow_code: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Carry out what is missing of a comparison.

    Args:
        folder: Of the comparison.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even with what would come out otherwise than it began.

    Raises:
        CheckpointError: What was asked for is damaged.
        ConfigError: It names code without `allow_code`.
        DistillabError: As `run_comparison`.
    """
    path = folder / REQUEST
    try:
        request = read_json_object(path)
        parts = [dict(request[name]) for name in ("comparison", "recipe", "flags")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"damaged: {error}", where=str(path), hint="start the comparison again") from error
    comparison, recipe, flags = (checked(part, str(path), allow_code=allow_code) for part in parts)
    return run_comparison(
        validated(ComparisonConfig, comparison),
        recipe,
        flags,
        output=folder,
        observer=observer,
        command=command,
        allow_code=allow_code,
        force=force,
    )


def _tell_of_earlier_runs(folder: Path, result: Mapping[str, Any], observer: Observer) -> None:
    """Say which complete runs of the folder's last tables are in none of these: somebody has asked for less."""
    now = {name for row in result["rows"] for name in row["run_dirs"]}
    try:
        before = [str(name) for row in read_json_object(folder / RESULT)["rows"] for name in row["run_dirs"]]
        left = [name for name in before if name not in now and is_complete(folder / name)]
    except (OSError, CheckpointError, KeyError, TypeError):  # there were none, or none that can be read
        return
    if left:
        observer(
            Note(
                f"no longer counted, since nobody asks for them now: {amount(len(left), 'run')} of the last tables of "
                f"this folder, {few_of(left)}; what is asked for again is counted again"
            )
        )


def _check_ours(folder: Path) -> None:
    """See that a folder is new, empty, or a comparison's."""
    try:
        taken = next((entry for entry in folder.iterdir() if entry.name != ".lock"), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, folder) from error
    if taken is not None and not is_comparison(folder):
        raise StorageError(
            f"the folder holds something that is no comparison: '{taken.name}'",
            where=str(folder),
            hint="choose a new folder, or leave --output out to get one under runs/",
        )


def _take(folder: Path) -> RunDir:
    """The folder, locked, with plain files in it only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    check_plain(folder)
    return RunDir(folder)
