"""A comparison carried out: teachers, then groups; what is done already is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import nn

from distillab.compare.plan import ComparisonPlan, Group, PlannedRun
from distillab.config import AnyConfig, DistillConfig, TrainConfig, to_toml
from distillab.data.dataset import Dataset
from distillab.errors import ConfigError, NonFiniteLossError
from distillab.identity import identity_sha256, run_identity
from distillab.models.weights import load_model
from distillab.report.run_record import read_result
from distillab.resume import resume, resume_or_run, written_settings
from distillab.run import run_together
from distillab.runtime.events import Note, Observer
from distillab.runtime.run_dir import read_group
from distillab.scene import open_data, run_image_size

Words = Sequence[str]

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True)
class Task(Generic[ResultT_co]):
    """A part of a comparison that any machine can carry out by itself.

    Attributes:
        title: Says which, in a sentence.
        config: Settings of one of its runs: how many threads, which device.
        work: Does it; is given the observer that is told of progress.
    """

    title: str
    config: AnyConfig
    work: Callable[[Observer], ResultT_co]


class Spread(Protocol):
    """Who carries out tasks, in any order, wherever."""

    def __call__(self, tasks: Sequence[Task[ResultT]], /) -> Iterator[ResultT]:
        """Give the results in the order of the tasks."""
        ...


def one_by_one(observer: Observer) -> Spread:
    """Carries out tasks here, one after another, each when its result is asked for.

    Args:
        observer: Is told of progress.
    """

    def spread(tasks: Sequence[Task[ResultT]], /) -> Iterator[ResultT]:
        return (task.work(observer) for task in tasks)

    return spread


def conduct_teachers(plan: ComparisonPlan, spread: Spread, *, command: Words, allow_code: bool) -> None:
    """Train the teachers of a plan that are not complete yet.

    Args:
        plan: Its runs say where their folders are.
        spread: Carries it out.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.

    Raises:
        ConfigError: A folder holds a run of other settings.
        NonFiniteLossError: A teacher diverged.
        DistillabError: Whatever a run may raise; what was complete stays.
    """
    work = partial(_conduct_teacher, command=command, allow_code=allow_code)
    for _ in spread([Task(f"teacher {teacher.seed}", teacher, partial(work, teacher)) for teacher in plan.teachers]):
        pass


def _conduct_teacher(config: TrainConfig, observer: Observer, *, command: Words, allow_code: bool) -> None:
    resume_or_run(config, observer=observer, command=command, allow_code=allow_code)


def conduct_groups(plan: ComparisonPlan, spread: Spread, *, command: Words, allow_code: bool) -> None:
    """Carry out all groups of a plan that are not complete yet; each run leaves a folder.

    Args:
        plan: Its runs say where their folders are.
        spread: Carries it out.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.

    Raises:
        ConfigError: A folder holds a run of other settings, images, or another teacher.
        DistillabError: Whatever a run may raise, but for a student that diverges: it is left out of the table. What
            was complete stays.
    """
    work = partial(conduct_group, command=command, allow_code=allow_code)
    titles = [str(group.folder.relative_to(plan.folder)) for group in plan.groups]
    tasks = [
        Task(title, group.runs[0].config, partial(work, group))
        for title, group in zip(titles, plan.groups, strict=True)
    ]
    for _ in spread(tasks):
        pass


def conduct_group(group: Group, observer: Observer, *, command: Words, allow_code: bool) -> None:
    """Carry out what is missing of a group: go on with what was begun, then begin the rest.

    Args:
        group: Its runs.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.

    Raises:
        DistillabError: As `conduct_groups`.
    """
    missing = _missing(group, observer, allow_code=allow_code)
    if not missing:
        return
    observer(Note(f"{group.folder.name}: {len(missing)} of {len(group.runs)} runs are left"))
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
    expected = Expected(observer, allow_code=allow_code)
    for run in group.runs:
        if not is_complete(run.folder):
            missing.append(run)
        elif read_result(run.folder).run_sha256 != expected.sha256(run.config):
            raise ConfigError(
                "the folder holds a run of other settings, images, or another teacher",
                where=str(run.folder),
                hint="give another --output, or remove that folder to have the run made again",
            )
    return missing


class Expected:
    """What runs are by now, their images and teachers looked at once.

    Args:
        observer: Is told of assumptions.
        allow_code: Settings and weight files may name code that is run.
    """

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
    begun = [
        wanted[home] for home in homes if home in wanted and written_settings(home) == to_toml(wanted[home].config)
    ]
    is_saved = any((folder / "checkpoints").glob("checkpoint-*"))
    return begun if is_saved and len(begun) == len(homes) else []
