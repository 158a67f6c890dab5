"""Runs of a comparison that are complete: whether they are what is planned now, and where they belong."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from distillab.compare.plan import ComparisonPlan
from distillab.config import AnyConfig, DistillConfig, TrainConfig
from distillab.data.dataset import Dataset
from distillab.errors import CheckpointError, ConfigError, DistillabError, few_of
from distillab.identity import arithmetic, changed_settings, identity_sha256, run_identity
from distillab.models.weights import load_model
from distillab.results.run_record import Result, read_result
from distillab.resume import read_config
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Note, Observer
from distillab.runtime.files import storage_error
from distillab.runtime.reproducibility import NUMERICS
from distillab.scene import open_data, run_image_size

_HALF = ".tmp-"  # how a folder is called while it is copied: what is in it may not be all


def is_complete(folder: Path) -> bool:
    """Whether a run has left its result."""
    return (folder / "result.json").is_file()


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


def take_finished(plan: ComparisonPlan, configs: Sequence[AnyConfig], expected: Expected) -> None:
    """Put complete runs of this comparison where the plan has them now: with more teachers or rows a run's folder may
    be another one, but what it is, its settings and contents as a hash, is the same.

    Args:
        plan: Says which folders are taken.
        configs: Settings of the planned runs that are looked for.
        expected: Says what they are by now.

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
