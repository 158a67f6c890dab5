"""A comparison carried out: teachers, then groups; what is done already is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import nn

from distillab.compare.plan import ComparisonPlan, Group, PlannedRun
from distillab.config import AnyConfig, DistillConfig, TrainConfig
from distillab.data.dataset import Dataset
from distillab.errors import CheckpointError, ConfigError, DistillabError, NonFiniteLossError, few_of
from distillab.identity import arithmetic, changed_settings, identity_sha256, run_identity
from distillab.models.weights import load_model
from distillab.results.run_record import Result, read_result
from distillab.resume import read_config, resume, resume_or_run
from distillab.run import run_together
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Note, Observer
from distillab.runtime.files import storage_error
from distillab.runtime.reproducibility import NUMERICS
from distillab.runtime.run_dir import checkpoints_of, read_group
from distillab.scene import open_data, run_image_size

_HALF = ".tmp-"  # how a folder is called while it is copied: what is in it may not be all

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
    _take_finished(plan, plan.teachers, expected)
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
    _take_finished(plan, configs, expected)
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
        _take_finished(plan, [run.config for run in group.runs], expected)
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


def is_complete(folder: Path) -> bool:
    """Whether a run has left its result."""
    return (folder / "result.json").is_file()


def _tell_diverged(runs: Sequence[PlannedRun], outcomes: Sequence[object], observer: Observer) -> None:
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, NonFiniteLossError):
            observer(Note(f"{run.row}, seed {run.seed}, is left out of the table: {outcome.message} ({outcome.where})"))


def _missing(group: Group) -> list[PlannedRun]:
    """The runs of a group that are not complete."""
    return [run for run in group.runs if not is_complete(run.folder)]


def home_of(config: AnyConfig) -> Path:
    """Where a planned run's files go."""
    assert config.output is not None
    return config.output


def check_finished(configs: Iterable[AnyConfig], expected: Expected) -> None:
    """See that the runs that are complete would come out as they are: a table mixes nothing.

    Args:
        configs: Settings of planned runs.
        expected: Says what they are by now.

    Raises:
        ConfigError: One was of other settings, images, or another teacher, or computed otherwise.
        CheckpointError: A result is damaged.
    """
    for config in configs:
        if not is_complete(folder := home_of(config)):
            continue
        result = read_result(folder)
        hint = "give another --output, or remove that folder to have the run made again"
        if result.run_sha256 != expected.sha256(config):
            words = f"the folder holds a run of {_what_else(folder, config)}"
            raise ConfigError(words, where=str(folder), hint=hint)
        if otherwise := _computed_otherwise(result, config):
            raise ConfigError(f"the run was computed otherwise: {otherwise}", where=str(folder), hint=hint)


def _what_else(folder: Path, config: AnyConfig) -> str:
    """What was otherwise in a run that is not the one with these settings."""
    try:
        changed = changed_settings(read_config(folder, allow_code=True), config)  # read, and nothing of it is run
    except DistillabError:
        return "other settings, images, or another teacher"
    if changed:
        return f"other settings: {few_of(changed)}"
    return "other images, another teacher, or another version; its settings are these"


def _computed_otherwise(result: Result, config: AnyConfig) -> str:
    """Where the arithmetic of a result is not that of a run with these settings, in words."""
    training = config.training
    try:
        compute = choose_compute(config.device, training.precision, deterministic=training.deterministic)
        now = arithmetic(compute)
    except ConfigError:  # a device that only the machines of a cluster have
        now = {"numerics": NUMERICS, "device": config.device.partition(":")[0]}
    before = result.arithmetic
    return ", ".join(
        f"{name} was {before.get(name, 'another')}, is {now[name]}" for name in now if before.get(name) != now[name]
    )


def _take_finished(plan: ComparisonPlan, configs: Sequence[AnyConfig], expected: Expected) -> None:
    """Put complete runs of this comparison where the plan has them now: with more teachers or rows a run's folder may
    be another one, but what it is, its settings and contents as a hash, is the same.

    Raises:
        StorageError: A folder cannot be moved or copied.
    """
    missing = [config for config in configs if not is_complete(home_of(config))]
    finished = _finished(plan.folder) if missing else {}
    if not finished:
        return
    planned = {home_of(teacher) for teacher in plan.teachers} | {run.folder for run in plan.runs}
    for config in missing:
        try:
            wanted = expected.sha256(config)
        except CheckpointError:  # its teacher is not trained yet: nobody has learnt from it
            continue
        found = finished.get(wanted)
        if found is None or _computed_otherwise(read_result(found), config):
            continue
        home = home_of(config)
        try:
            shutil.rmtree(home, ignore_errors=True)
            home.parent.mkdir(parents=True, exist_ok=True)
            if found in planned:
                half = home.with_name(_HALF + home.name)
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(found, half)
                half.replace(home)
            else:
                found.replace(home)
                finished[wanted] = home
                planned.add(home)
        except OSError as error:
            raise storage_error(error, home) from error
        expected.observer(
            Note(f"{home.relative_to(plan.folder)} is {found.relative_to(plan.folder)}, which is complete")
        )


def _finished(folder: Path) -> dict[str, Path]:
    """The complete runs below a folder, by what they are."""
    found = {}
    for path in sorted(folder.rglob("result.json")):
        if path.parent.name.startswith(_HALF):
            continue
        try:
            sha256 = read_result(path.parent).run_sha256
        except DistillabError:  # damaged: it is no use, and told where it is wanted
            continue
        if sha256 is not None:
            found[sha256] = path.parent
    return found


class Expected:
    """What runs are by now, their images and teachers looked at once.

    Args:
        observer: Is told of assumptions.
        allow_code: Settings and weight files may name code that is run.
    """

    def __init__(self, observer: Observer, *, allow_code: bool) -> None:
        self.observer = observer
        self._allow_code = allow_code
        self._data: dict[str, Dataset] = {}
        self._teachers: dict[str, nn.Module] = {}

    def sha256(self, config: AnyConfig) -> str:
        """The hash that a run with these settings has."""
        key = repr((config.data, config.data_dir, config.image_size, config.split))
        if key not in self._data:
            self._data[key] = open_data(config, self.observer)
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
                observer=self.observer,
            )
        return self._teachers[config.teacher]


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
