"""A comparison carried out: teachers, then groups; what is done already is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from distillab.compare.finished import Expected, check_finished, home_of, is_complete, take_finished
from distillab.compare.plan import ComparisonPlan, Group, PlannedRun
from distillab.config import AnyConfig, TrainConfig
from distillab.errors import DistillabError, NonFiniteLossError
from distillab.resume import read_config, resume, resume_or_run
from distillab.run import run_together
from distillab.runtime.events import Note, Observer
from distillab.runtime.run_dir import checkpoints_of, read_group

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


def conduct_teachers(
    plan: ComparisonPlan, spread: Spread, expected: Expected, *, command: Words, allow_code: bool, force: bool
) -> None:
    """Train the teachers of a plan that are not complete yet.

    Args:
        plan: Its runs say where their folders are.
        spread: Carries it out.
        expected: Says what runs are by now.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even with what would come out otherwise than it began.

    Raises:
        ConfigError: A folder holds a run of other settings.
        NonFiniteLossError: A teacher diverged.
        DistillabError: Whatever a run may raise; what was complete stays.
    """
    take_finished(plan, plan.teachers, expected)
    check_finished(plan.teachers, expected)
    work = partial(_conduct_teacher, command=command, allow_code=allow_code, force=force)
    missing = [teacher for teacher in plan.teachers if not is_complete(home_of(teacher))]
    for _ in spread([Task(f"teacher {teacher.seed}", teacher, partial(work, teacher)) for teacher in missing]):
        pass


def _conduct_teacher(config: TrainConfig, observer: Observer, *, command: Words, allow_code: bool, force: bool) -> None:
    resume_or_run(config, observer=observer, command=command, allow_code=allow_code, force=force)


def conduct_groups(
    plan: ComparisonPlan, spread: Spread, expected: Expected, *, command: Words, allow_code: bool, force: bool
) -> None:
    """Carry out all groups of a plan that are not complete yet; each run leaves a folder.

    Args:
        plan: Its runs say where their folders are; its teachers are trained.
        spread: Carries it out.
        expected: Says what runs are by now.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even with what would come out otherwise than it began.

    Raises:
        ConfigError: A folder holds a run of other settings, images, or another teacher.
        DistillabError: Whatever a run may raise, but for a student that diverges: it is left out of the table. What
            was complete stays.
    """
    configs = [run.config for run in plan.runs]
    take_finished(plan, configs, expected)
    check_finished(configs, expected)
    work = partial(_conduct_group, plan, command=command, allow_code=allow_code, force=force)
    tasks = [
        Task(str(group.folder.relative_to(plan.folder)), group.runs[0].config, partial(work, group))
        for group in plan.groups
        if _missing(group)
    ]
    for _ in spread(tasks):
        pass


def _conduct_group(
    plan: ComparisonPlan, group: Group, observer: Observer, *, command: Words, allow_code: bool, force: bool
) -> None:
    """Carry out what is missing of a group: go on with what was begun, then begin the rest.

    Args:
        plan: The whole.
        group: Its runs.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even with what would come out otherwise than it began.

    Raises:
        DistillabError: As `conduct_groups`.
    """
    expected = Expected(observer, allow_code=allow_code)
    if len(plan.teachers) > 1:  # who has no teacher comes out the same beside each of them, and may be there by now
        take_finished(plan, [run.config for run in group.runs], expected)
    missing = _missing(group)
    observer(Note(f"{group.folder.name}: {len(missing)} of {len(group.runs)} runs are left"))
    begun = _begun(group, expected, allow_code=allow_code)
    if begun:
        outcomes = resume(group.folder, observer=observer, command=command, allow_code=allow_code, force=force)
        _tell_diverged(begun, outcomes, observer)
        missing = [run for run in missing if run not in begun]
    if missing:
        saved = checkpoints_of(group.folder)
        if not begun and any(saved.glob("checkpoint-*")):
            observer(Note(f"{group.folder.name}: its checkpoints are of other runs than those that are left; removed"))
        shutil.rmtree(saved, ignore_errors=True)
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


def _tell_diverged(runs: Sequence[PlannedRun], outcomes: Sequence[object], observer: Observer) -> None:
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, NonFiniteLossError):
            observer(Note(f"{run.row}, seed {run.seed}, is left out of the table: {outcome.message} ({outcome.where})"))


def _missing(group: Group) -> list[PlannedRun]:
    """The runs of a group that are not complete."""
    return [run for run in group.runs if not is_complete(run.folder)]


def _begun(group: Group, expected: Expected, *, allow_code: bool) -> list[PlannedRun]:
    """Runs that were begun together and can go on together, those of them that are complete as well: all are planned
    as they were begun, wherever that was written down otherwise.
    """
    homes = read_group(group.folder) or []
    planned = {run.folder: run for run in group.runs}
    if not any(checkpoints_of(group.folder).glob("checkpoint-*")) or not planned.keys() >= set(homes):
        return []
    begun = [planned[home] for home in homes]
    try:
        same = all(
            expected.sha256(read_config(run.folder, allow_code=allow_code)) == expected.sha256(run.config)
            for run in begun
        )
    except DistillabError:  # one has not written down its settings
        return []
    return begun if same else []
