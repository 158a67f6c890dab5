"""A comparison as data: which rows, seeds and teachers, and the settings of each run. Imports no torch by itself."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from distillab.compare.axes import nested, read_axes
from distillab.compare.config import ComparisonConfig
from distillab.config import (
    AnyConfig,
    DistillConfig,
    TrainConfig,
    is_weight_source,
    merged,
    resolve_distill,
    resolve_train,
    settings_of,
    shared_settings,
    to_toml,
)
from distillab.errors import ConfigError
from distillab.outside_code import mentions_code, names_code
from distillab.stages import ALONE, find_plan

_LONGEST_NAME = 100
_LARGEST_GROUP = 16  # students that are trained together: each has weights, moments and activations of its own


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        table: Which rows it is held against: those with equal settings beyond the methods' own, such as "student
            cnn12"; "" where no such setting is varied.
        row: Name of its row in there, such as "st" or "st, temperature 2".
        method: The plan's name, or "alone".
        seed: Its seed.
        teacher: Number of the teacher, from 0.
        config: Its settings; `output` is its folder.
        tuned: The settings that tuning has found, by dotted name; None for a run of the recipe's own settings.
    """

    table: str
    row: str
    method: str
    seed: int
    teacher: int
    config: AnyConfig
    tuned: Mapping[str, float] | None = None

    @property
    def folder(self) -> Path:
        """Where its files go."""
        assert self.config.output is not None
        return self.config.output


@dataclass(frozen=True)
class Group:
    """Runs that are carried out together on the same batches.

    Attributes:
        folder: Holds their folders.
        runs: At most sixteen.
    """

    folder: Path
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class ComparisonPlan:
    """All runs of a comparison.

    Attributes:
        folder: Holds everything.
        teachers: Settings of the teachers' own runs; empty where the teacher is given.
        groups: In the order in which they are carried out.
        tune: In how many trials each row is tuned; 0: not at all.
        varied: Settings that an axis varies, by dotted name: they are not tuned.
        notes: What is otherwise than the recipe says, in sentences.
    """

    folder: Path
    teachers: tuple[TrainConfig, ...]
    groups: tuple[Group, ...]
    tune: int = 0
    varied: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Of all groups."""
        return tuple(run for group in self.groups for run in group.runs)

    @property
    def names_code(self) -> bool:
        """Whether a setting of its runs names a function of somebody's package."""
        return any(mentions_code(settings_of(run.config)) for run in self.runs)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Table and name of each row, a table's row "alone" first."""
        return tuple(dict.fromkeys((run.table, run.row) for run in self.runs))


def plan_comparison(
    comparison: ComparisonConfig, recipe: Mapping[str, Any], flags: Mapping[str, Any], folder: Path
) -> ComparisonPlan:
    """Settle all runs of a comparison. Imports the methods, hence torch.

    Teacher and split are one for all rows and seeds (one a teacher's seed, where there are several); a seed sets
    initial weights, order and views of a student, and its assistant's. All students have one schedule and as many
    epochs: what a recipe says of models alone is for teachers here, and a student's stages share its epochs.

    Args:
        comparison: What is compared.
        recipe: Values of a run's settings.
        flags: Laid over the recipe.
        folder: Will hold everything.

    Raises:
        ConfigError: A method or setting is unknown, out of bounds, or without effect.
        CheckpointError: The teacher looks like a weight file, but is not there.
    """
    for name in comparison.methods:
        find_plan(name)
    for name, instead in (("method", "--methods"), ("output", "--output")):
        if name in flags:
            raise ConfigError(f"{name} is no setting of a comparison", where=name, hint=f"use {instead}")
    base = merged(recipe, flags)
    teacher = base.get("teacher", DistillConfig.model_fields["teacher"].default)
    is_given = is_weight_source(teacher)
    if is_given and comparison.teacher_seeds > 1:
        raise ConfigError(
            "one teacher is given, and several are asked for",
            where="teacher_seeds",
            hint="give a teacher's model name: then each is trained from a seed of its own",
        )
    first = int(base.get("seed", 0))
    equal, notes = _on_equal_terms(recipe)
    own_flags = {name: value for name, value in flags.items() if name != "alone"}
    teachers: list[TrainConfig] = []
    groups: list[Group] = []
    for number in range(comparison.teacher_seeds):
        home = folder if comparison.teacher_seeds == 1 else folder / f"teacher-{first + number}"
        if not is_given:
            own = {"role": "teacher", "seed": first + number, "output": home / "teacher"}
            teachers.append(resolve_train(recipe, merged(flags, own)))
        weights = teacher if is_given else str(home / "teacher")
        for seed in range(first, first + comparison.seeds):
            runs = [
                PlannedRun(table, row, method, seed, number, _taught_by(config, weights, trained=not is_given))
                for table, row, method, config in _rows(comparison, equal, {**own_flags, "seed": seed})
            ]
            groups += _grouped(runs, home / f"seed-{seed}")
    varied = frozenset(".".join(axis.path) for axis in read_axes(comparison.axis, comparison.methods))
    plan = ComparisonPlan(folder, tuple(teachers), tuple(groups), comparison.tune, varied, notes)
    if plan.tune and not all(run.config.split.validation_fraction for run in plan.runs):
        raise ConfigError(
            "tuning needs validation images to choose by",
            where="split.validation_fraction",
            hint="raise it, say to 0.1, or leave tune out",
        )
    return plan


def _on_equal_terms(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A recipe's values without what would give some students another schedule or more epochs; and what was changed."""
    equal = {name: value for name, value in recipe.items() if name != "alone"}
    notes = []
    if recipe.get("alone"):
        notes.append("the student alone is trained as all others are: the recipe's [alone] counts for teachers")
    if recipe.get("training", {}).get("stage_epochs") == "each":
        equal = merged(equal, {"training": {"stage_epochs": "shared"}})
        notes.append("no student has more epochs than another: those of a plan's stages add up (stage_epochs shared)")
    return equal, tuple(notes)


def _rows(
    comparison: ComparisonConfig, recipe: Mapping[str, Any], flags: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, AnyConfig]]:
    """Table, name, method and settings of each row for one seed; where an axis changes nothing a row stands once."""
    axes = read_axes(comparison.axis, comparison.methods)
    known: set[str] = set()
    for method in (ALONE, *comparison.methods):
        for chosen in itertools.product(*(axis.values for axis in axes)):
            table: list[str] = []
            words = [method]
            over = dict(flags)
            for axis, value in zip(axes, chosen, strict=True):
                if axis.concerns(method):
                    over = merged(over, nested(axis.path, value))
                    if len(axis.values) > 1:  # a single value tells nothing from anything
                        (table if axis.concerns(ALONE) else words).append(f"{axis.path[-1].replace('_', ' ')} {value}")
            config: AnyConfig
            if method == ALONE:
                config = resolve_train(recipe, merged(over, {"role": "student"}))
            else:
                config = resolve_distill(recipe, merged(over, {"method": method}))
            if config.training.stage_epochs == "each":
                raise ConfigError(
                    "methods of several stages would have more epochs than the student alone",
                    where="training.stage_epochs",
                    hint="leave it out: in a comparison a student's stages share its epochs",
                )
            if (content := to_toml(config)) not in known:
                known.add(content)
                yield ", ".join(table), ", ".join(words), method, config


def _taught_by(config: AnyConfig, teacher: str, *, trained: bool) -> AnyConfig:
    # Put in afterwards: a teacher that is trained first has no weights yet when the comparison is planned. A function
    # that makes it was named by whoever asked: its weights may name it again.
    if isinstance(config, TrainConfig):
        return config
    named = {"teacher_model": config.teacher} if trained and names_code(config.teacher) else {}
    return config.model_copy(update={"teacher": teacher, **named})


class _Configured(Protocol):
    @property
    def config(self) -> AnyConfig: ...


ConfiguredT = TypeVar("ConfiguredT", bound=_Configured)


def trained_together(runs: Iterable[ConfiguredT]) -> list[tuple[ConfiguredT, ...]]:
    """Divide runs into those that share their batches, at most sixteen each."""
    alike: dict[str, list[ConfiguredT]] = {}
    for run in runs:
        alike.setdefault(repr(shared_settings(run.config)), []).append(run)
    starts = ((part, start) for part in alike.values() for start in range(0, len(part), _LARGEST_GROUP))
    return [tuple(part[start : start + _LARGEST_GROUP]) for part, start in starts]


def _grouped(runs: Sequence[PlannedRun], folder: Path) -> list[Group]:
    """Runs by what they can share, each with a folder of its own in that of its group."""
    parts = trained_together(runs)
    groups = []
    for number, part in enumerate(parts):
        home = folder if len(parts) == 1 else folder.with_name(f"{folder.name}-{number + 1}")
        placed = tuple(
            replace(
                run,
                config=run.config.model_copy(update={"output": home / file_name(run.table, run.row)}),
            )
            for run in part
        )
        groups.append(Group(home, placed))
    return groups


def file_name(table: str, row: str) -> str:
    """What the files of a row are named after."""
    words = f"{row} {table}".strip().replace(", ", "-").replace(" ", "-")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in words)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"  # cut ones may be equal
