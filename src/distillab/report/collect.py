"""Run folders as the rows of a report: which runs are one method with several seeds, and what tells methods apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from distillab.config import DistillConfig, settings_of
from distillab.errors import StorageError
from distillab.report.run_record import Result, Run, read_run, readable, shown_path, unreadable

Place = Literal["teacher", "assistant", "alone", "distilled"]
"""What a row of the report is among the others."""

_DEEPEST_FOLDER = 3
_IN_EVERY_ROW = ("role", "method", "model", "student")
# Two runs that differ in these alone are one variant.
_NOT_OF_A_VARIANT = frozenset(
    ("seed", "output", "data_dir", "offline", "device", "threads", "cache_gib", "resident_gib", "checkpoint", "track")
)


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone: one row of the report.

    Attributes:
        name: The method, or the role of a model that was trained alone; with the settings that tell it from others.
        place: What it is among the rows.
        runs: By rising seed; at least one.
    """

    name: str
    place: Place
    runs: tuple[Run, ...]

    @property
    def top1(self) -> float:
        """Mean accuracy on the test images, 0..1."""
        return fmean(run.result.test.top1 for run in self.runs)

    @property
    def first(self) -> Run:
        """The run that stands for all where one is looked at closely."""
        return self.runs[0]


@dataclass(frozen=True)
class Collection:
    """All that a report is about.

    Attributes:
        variants: Teachers first, then assistants, students alone, distilled students, each as they were given.
        differing: Settings in which variants differ: dotted name -> one value a variant, "-" where it has none.
        left_out: What is not in the report, and why, a sentence each.
    """

    variants: tuple[Variant, ...]
    differing: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]

    def of(self, place: Place) -> list[Variant]:
        """The variants of one place."""
        return [variant for variant in self.variants if variant.place == place]

    @property
    def best(self) -> Variant | None:
        """The distilled student with the highest mean test accuracy, the first of equals; it is looked at closely."""
        return max(self.of("distilled"), key=lambda variant: variant.top1, default=None)


def collect(paths: Iterable[Path]) -> Collection:
    """Read run folders.

    Args:
        paths: Run folders, and folders that hold some, up to three levels down.

    Raises:
        StorageError: A path has no run folder, or no run has come to its end.
        CheckpointError: A file of a run is damaged, or is none of ours.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _run_folders(path)))
    complete = [folder for folder in folders if (folder / "result.json").is_file()]
    left_out = [f"{shown_path(folder)} is not complete." for folder in folders if folder not in complete]
    if not complete:
        raise StorageError(
            f"none of the {len(folders)} runs has come to its end",
            where=shown_path(folders[0]),
            hint="let one go on: distillab resume RUN",
        )
    groups = _grouped([read_run(folder) for folder in complete], left_out)
    teachers = [group for group in groups if _place(group[0]) == "teacher"]
    taught = [run for group in groups for run in group if run.result.teacher]
    if taught and not teachers:
        groups.append([_teacher_of(taught[0])])
    groups.sort(key=lambda group: _ORDER[_place(group[0])])
    names = _names(groups)
    variants = tuple(Variant(name, _place(group[0]), tuple(group)) for name, group in zip(names, groups, strict=True))
    return Collection(variants, _differing([_flat(group[0]) for group in groups]), tuple(left_out))


_ORDER: dict[Place, int] = {"teacher": 0, "assistant": 1, "alone": 2, "distilled": 3}


def _run_folders(path: Path) -> list[Path]:
    found = list(_below(path, _DEEPEST_FOLDER))
    if not found:
        there = path.is_dir()
        raise StorageError(
            "there is no run folder in this folder" if there else "there is no such folder",
            where=shown_path(path),
            hint="give run folders, which hold a config.toml, or a folder that holds them",
        )
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.toml").is_file():
        yield folder
    elif depth and folder.is_dir():
        try:
            inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
        except OSError as error:
            raise unreadable(folder, error) from error
        for entry in inner:
            yield from _below(entry, depth - 1)


def _teacher_of(run: Run) -> Run:
    """The teacher of a distilled student, where its own run is not among those that were given."""
    part = run.result.teacher
    assert part is not None
    inside = run.folder / "teacher.safetensors"
    result = Result(
        kind="train",
        role="teacher",
        model=part.model,
        data=run.result.data,
        seed=run.result.seed,
        test=part.test,
        cost=part.cost,
    )
    weights = inside if inside.is_file() else Path(part.source)
    return replace(run, result=result, weights=weights if weights.exists() else None)


def _grouped(runs: Sequence[Run], left_out: list[str]) -> list[list[Run]]:
    """Runs of one variant together, by rising seed; of equal seeds the first."""
    groups: dict[object, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault((run.result.kind, run.result.role, *_flat(run).items()), {})
        if run.result.seed in seeds:
            left_out.append(
                f"{shown_path(run.folder)} is a second run of seed {run.result.seed}: the first one counts."
            )
        else:
            seeds[run.result.seed] = run
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]


def _place(run: Run) -> Place:
    if run.result.role == "student":
        return "alone" if run.result.kind == "train" else "distilled"
    return run.result.role


def _flat(run: Run) -> dict[str, str]:
    """Settings that tell variants apart: dotted name -> value."""
    own = {key: value for key, value in settings_of(run.config).items() if key not in _NOT_OF_A_VARIANT}
    return dict(sorted(_leaves(own, "")))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield readable(prefix + key), readable(value if isinstance(value, str) else json.dumps(value))


def _differing(settings: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """Settings with several values among those that have them, but for those that stand in every row's name."""
    names = [name for name in dict.fromkeys(name for one in settings for name in one) if name not in _IN_EVERY_ROW]
    columns = {name: tuple(one.get(name, "-") for one in settings) for name in names}
    return {name: values for name, values in columns.items() if len({*values} - {"-"}) > 1}


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each variant; where a method or role has several, with the settings in which these differ."""
    bases = [
        readable(run.config.method)
        if isinstance(run.config, DistillConfig) and _place(run) == "distilled"
        else _place(run)
        for run, *_ in groups
    ]
    names = list(bases)
    for base in {base for base in bases if bases.count(base) > 1}:
        alike = [number for number, other in enumerate(bases) if other == base]
        settings = [_flat(groups[number][0]) for number in alike]
        keys = [
            key
            for key in dict.fromkeys(k for one in settings for k in one)
            if len({one.get(key) for one in settings}) > 1
        ]
        for number, own in zip(alike, settings, strict=True):
            told = (f"{key.rpartition('.')[2].replace('_', ' ')} {own.get(key, 'not set')}" for key in keys)
            names[number] = readable(", ".join([base, *told]))
    # Long names are cut, and what is left may be alike.
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
