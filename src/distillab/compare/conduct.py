"""A comparison carried out: teachers, then one group after another; what is done already is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from distillab.compare.plan import ComparisonPlan, Group, PlannedRun
from distillab.config import AnyConfig, DistillConfig, TrainConfig, to_toml
from distillab.data.dataset import Dataset
from distillab.errors import CheckpointError, ConfigError, NonFiniteLossError
from distillab.identity import identity_sha256, run_identity
from distillab.models.weights import load_model
from distillab.resume import resume, resume_or_run
from distillab.run import run_together
from distillab.runtime.events import Note, Observer
from distillab.runtime.run_dir import read_group
from distillab.scene import open_data, run_image_size

Words = Sequence[str]


def conduct(
    plan: ComparisonPlan, *, observer: Observer, command: Words, allow_code: bool, spread: Spread | None = None
) -> None:
    """Carry out all runs of a plan that are not complete yet; each leaves a run folder.

    Args:
        plan: Its runs say where their folders are.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        spread: Carries out the groups, on other machines say; None: one after another, here.

    Raises:
        ConfigError: A folder holds a run of other settings, images, or another teacher.
        NonFiniteLossError: A teacher diverged. A student that does is left out of the table.
        DistillabError: Whatever a run may raise; what was complete stays.
    """
    for config in plan.teachers:
        resume_or_run(config, observer=observer, command=command, allow_code=allow_code)

    if spread is not None:
        spread(plan.groups)
        return
    for group in plan.groups:
        conduct_group(group, observer=observer, command=command, allow_code=allow_code)


Spread = Callable[[Sequence[Group]], None]
"""Carries out groups, in any order, wherever."""


def conduct_group(group: Group, *, observer: Observer, command: Words, allow_code: bool) -> None:
    """Carry out what is missing of a group: go on with what was begun, then begin the rest.

    Args:
        group: Its runs.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.

    Raises:
        DistillabError: As `conduct`.
    """
    missing = _missing(group, observer, allow_code=allow_code)
    if not missing:
        return
    begun = _begun(group.folder, missing)
    if begun:
        outcomes = resume(group.folder, observer=observer, command=command, allow_code=allow_code)
        _tell_diverged(begun, outcomes, observer)
        missing = [run for run in missing if run not in begun]
    if missing:
        shutil.rmtree(group.folder / "checkpoints", ignore_errors=True)  # of runs that are complete
        for run in missing:  # begun, but nothing of them was saved
            shutil.rmtree(run.folder, ignore_errors=True)
        outcomes = run_together(
            [run.config for run in missing],
            observer=observer,
            command=command,
            allow_code=allow_code,
            group=group.folder,
        )
        _tell_diverged(missing, outcomes, observer)


def is_complete(folder: Path) -> bool:
    """Whether a run has left its result."""
    return (folder / "result.json").is_file()


def read_result(folder: Path) -> dict[str, Any]:
    """The result that a run has left.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / "result.json"
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        record["test"]["top1"], record["timing"]["seconds"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"damaged: {error}", where=str(path), hint="remove the run folder and go on") from error
    return record


def _tell_diverged(runs: Sequence[PlannedRun], outcomes: Sequence[object], observer: Observer) -> None:
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, NonFiniteLossError):
            observer(Note(f"{run.row}, seed {run.seed}, is left out of the table: {outcome.message} ({outcome.where})"))


def _missing(group: Group, observer: Observer, *, allow_code: bool) -> list[PlannedRun]:
    """The runs of a group that are not complete.

    Raises:
        ConfigError: A complete one was of other settings, images, or another teacher.
    """
    missing = []
    expected = _Expected(observer, allow_code=allow_code)
    for run in group.runs:
        if not is_complete(run.folder):
            missing.append(run)
        elif read_result(run.folder).get("run_sha256") != expected.sha256(run.config):
            raise ConfigError(
                "the folder holds a run of other settings, images, or another teacher",
                where=str(run.folder),
                hint="give another --output, or remove that folder to have the run made again",
            )
    return missing


class _Expected:
    """What the runs of a group are by now, their images and teacher looked at once."""

    def __init__(self, observer: Observer, *, allow_code: bool) -> None:
        self._observer = observer
        self._allow_code = allow_code
        self._data: dict[str, Dataset] = {}
        self._teachers: dict[str, nn.Module] = {}

    def sha256(self, config: AnyConfig) -> str:
        """The hash that a run with these settings has."""
        key = repr((config.data, config.data_dir, config.image_size, config.split))
        if key not in self._data:
            self._data[key] = open_data(config, self._observer)
        dataset = self._data[key]
        teacher = None if isinstance(config, TrainConfig) else self._teacher(config, dataset)
        return identity_sha256(run_identity(config, dataset, teacher))

    def _teacher(self, config: DistillConfig, dataset: Dataset) -> nn.Module:
        if config.teacher not in self._teachers:
            self._teachers[config.teacher] = load_model(
                config.teacher,
                spec=config.teacher_model,
                num_classes=dataset.num_classes,
                image_size=run_image_size(config),
                allow_code=self._allow_code,
                observer=self._observer,
            )
        return self._teachers[config.teacher]


def _begun(folder: Path, missing: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs that were begun together and can go on together: all of them are wanted as they were begun."""
    homes = read_group(folder) or []
    wanted = {run.folder: run for run in missing}
    begun = [wanted[home] for home in homes if home in wanted and _settings(home) == to_toml(wanted[home].config)]
    is_saved = any((folder / "checkpoints").glob("checkpoint-*"))
    return begun if is_saved and len(begun) == len(homes) else []


def _settings(folder: Path) -> str | None:
    try:
        return (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
