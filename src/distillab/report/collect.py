"""Runs as the rows of a report: which are one row with several seeds, what tells rows apart, and who taught whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from distillab.config import AnyConfig, DistillConfig, RunConfig, TrainConfig
from distillab.errors import CheckpointError, DistillabError, StorageError
from distillab.report.folders import ComparedRow, find_runs
from distillab.report.telling_apart import distinct, ends_of, flat_settings, told_apart
from distillab.results.rows import Row
from distillab.results.run_record import Result, Run, TeacherPart, read_run, readable, shown_path
from distillab.stages import ALONE

Place = Literal["teacher", "assistant", "alone", "distilled"]
"""What a row of the report is among the others."""

_ORDER: dict[Place, int] = {"teacher": 0, "assistant": 1, "alone": 2, "distilled": 3}
_IN_EVERY_ROW = ("role", "method", "model", "student")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed, or their teacher, alone: one row of the report.

    Attributes:
        name: The method, or the role of a model that was trained alone; with what tells it from others.
        place: What it is among the rows.
        runs: By rising seed; none where all have diverged.
        table: Students are held against those of the same table; "" where there is one.
        method: Its name in its table; the same as `name` if empty.
        compared: What a comparison says of it; None where its settings alone make it a row.
    """

    name: str
    place: Place
    runs: tuple[Run, ...]
    table: str = ""
    method: str = ""
    compared: ComparedRow | None = None

    @property
    def row(self) -> Row:
        """What is counted."""
        said = self.compared
        return Row(
            self.table,
            self.method or self.name,
            tuple(run.result for run in self.runs),
            said.run_dirs if said else tuple(shown_path(run.folder) for run in self.runs),
            num_teachers=said.num_teachers if said else 1,
            tuned=said.tuned if said else None,
            trials=said.trials if said else 0,
        )

    @property
    def top1(self) -> float:
        """Mean accuracy on the test images over its seeds, 0..1; NaN without a run."""
        runs = self.row.by_seed().values()
        return fmean(run.top1 for run in runs) if runs else math.nan

    @property
    def first(self) -> Run:
        """The run that stands for all where one is looked at closely; there must be one."""
        return self.runs[0]


@dataclass(frozen=True)
class Collection:
    """All that a report is about.

    Attributes:
        variants: Teachers first, then assistants, then students, table by table, the student alone before the others.
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
        tested = [variant for variant in self.of("distilled") if not math.isnan(variant.top1)]
        return max(tested, key=lambda variant: variant.top1, default=None)

    @property
    def trio(self) -> tuple[Variant, Variant, Variant] | None:
        """Teacher, student alone and best distilled student, whose choices are held against each other."""
        best = self.best
        teacher, alone = (self.teacher_of(best), self.alone_of(best)) if best else (None, None)
        return (teacher, alone, best) if teacher and alone and best else None

    def alone_of(self, variant: Variant) -> Variant | None:
        """The student alone that a variant is held against: that of its table; for teachers the first there is."""
        mine = [
            one
            for one in self.of("alone")
            if not math.isnan(one.top1) and (one.table == variant.table or _is_guide(variant))
        ]
        return mine[0] if mine else None

    def teacher_of(self, variant: Variant) -> Variant | None:
        """The teacher whose first run taught the variant's first run; for a student alone the first one there is."""
        teachers = self.of("teacher")
        if _is_guide(variant) or not variant.runs:
            return None
        part = variant.first.result.teacher
        taught_by = [one for one in teachers if part is None or _is_teacher(one.first, part)]
        return taught_by[0] if taught_by else None


def collect(paths: Iterable[Path]) -> Collection:
    """Read run folders.

    The rows of a comparison are those of its `results.json`. Other runs are one row where they differ in their seed
    alone, and in one table where they have the same model, data, schedule and epochs.

    Args:
        paths: Run folders, comparisons, and folders that hold some.

    Raises:
        StorageError: A path has no run folder, or no run has come to its end.
        CheckpointError: There is no run but such as are damaged, or none of ours.
    """
    folders = find_runs(paths)
    left_out = list(folders.left_out)
    broken: list[DistillabError] = []
    complete = [folder for folder in folders.runs if (folder / "result.json").is_file()]
    left_out += [f"{shown_path(folder)} is not complete." for folder in folders.runs if folder not in complete]
    groups = _grouped(_read(complete, broken), left_out)
    guides = [group for group in groups if group[0].result.role != "student"]
    loose = [group for group in groups if group[0].result.role == "student"]
    homes = [home for home, _ in folders.comparisons]
    prefixes = distinct([readable(home.name) for home in homes]) if len(homes) + bool(loose) > 1 else [""] * len(homes)
    students = [
        _compared(home, row, prefix, left_out, broken)
        for (home, rows), prefix in zip(folders.comparisons, prefixes, strict=True)
        for row in rows
    ]
    students += _by_settings(loose, prefix="other runs" if homes else "")
    guides += _teachers_told([run for one in students for run in one.runs], guides)
    left_out += [f"{shown_path(Path(error.where or ''))}: {error.message}." for error in broken]
    if not guides and not any(one.runs for one in students):
        if broken:
            raise broken[0]
        raise StorageError(
            "no run has come to its end",
            where=shown_path([*folders.runs, *homes][0]),
            hint="let one go on: distillab resume RUN",
        )
    first = [group[0] for group in guides]
    named = distinct(told_apart([run.result.role for run in first], _settings_in_names(first)))
    variants = [Variant(name, _place(group[0]), tuple(group)) for name, group in zip(named, guides, strict=True)]
    variants = sorted(variants, key=lambda one: _ORDER[one.place]) + _in_order(students)
    return Collection(tuple(variants), _differing(variants), tuple(left_out))


def _read(folders: Iterable[Path], broken: list[DistillabError]) -> list[Run]:
    """Complete runs; what is wrong with the others is added to `broken`: one file costs no more than its run."""
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except (CheckpointError, StorageError) as error:
            broken.append(error)
    return runs


def _is_guide(variant: Variant) -> bool:
    return variant.place in ("teacher", "assistant")


def _in_order(students: Sequence[Variant]) -> list[Variant]:
    """Table by table, the student alone first; each with a name that no other has."""
    tables = list(dict.fromkeys(one.table for one in students))
    ordered = sorted(students, key=lambda one: (tables.index(one.table), _ORDER[one.place]))
    names = distinct(
        [f"{one.method} ({one.table})" if one.table and len(tables) > 1 else one.method for one in ordered]
    )
    return [replace(one, name=name) for one, name in zip(ordered, names, strict=True)]


def _compared(home: Path, row: ComparedRow, prefix: str, left_out: list[str], broken: list[DistillabError]) -> Variant:
    """A row of a comparison, with those of its runs that have come to their end."""
    table = readable(": ".join(filter(None, (prefix, row.table))))
    asked = [home / name for name in row.run_dirs]
    complete = [folder for folder in asked if (folder / "result.json").is_file()]
    left_out += [
        f"{shown_path(folder)} has not come to its end, or has diverged." for folder in asked if folder not in complete
    ]
    runs = _read(complete, broken)
    runs.sort(key=lambda run: run.result.seed)
    method = readable(row.method)
    return Variant(method, "alone" if method == ALONE else "distilled", tuple(runs), table, method, row)


def _by_settings(groups: Sequence[list[Run]], *, prefix: str) -> list[Variant]:
    """Students of no comparison: in one table where they are trained on equal terms."""
    schedules = [flat_settings(_terms(group[0].config)) for group in groups]
    tables = [one for n, one in enumerate(schedules) if one not in schedules[:n]]
    titles = distinct(told_apart([prefix] * len(tables), tables))
    variants = []
    for title, schedule in zip(titles, tables, strict=True):
        own = [group for group, other in zip(groups, schedules, strict=True) if other == schedule]
        bases = [_method(group[0]) for group in own]
        methods = distinct(told_apart(bases, [flat_settings(group[0].config) for group in own]))
        variants += [
            Variant(method, _place(group[0]), tuple(group), title, method)
            for method, group in zip(methods, own, strict=True)
        ]
    return variants


def _terms(config: AnyConfig) -> RunConfig:
    """What the student alone has in common with all that are held against it: model, data, schedule, epochs."""
    model = config.model if isinstance(config, TrainConfig) else config.student
    shared = {name: getattr(config, name) for name in RunConfig.model_fields}
    return TrainConfig.model_construct(**shared, role="student", model=model)


def _method(run: Run) -> str:
    return readable(run.config.method) if isinstance(run.config, DistillConfig) else ALONE


def _place(run: Run) -> Place:
    if run.result.role == "student":
        return "alone" if run.result.kind == "train" else "distilled"
    return run.result.role


def _teachers_told(taught: Sequence[Run], guides: Sequence[Sequence[Run]]) -> list[list[Run]]:
    """Teachers that the runs of their students tell of, where their own runs are not among those that were given."""
    known = [run for group in guides for run in group if run.result.role == "teacher"]
    found: dict[str, dict[int, Run]] = {}
    for run in taught:
        part = run.result.teacher
        if part is not None and not any(_is_teacher(one, part) for one in known):
            teacher = _teacher_of(run, part)
            known.append(teacher)
            found.setdefault(part.source, {}).setdefault(run.result.seed, teacher)
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in found.values()]


def _is_teacher(run: Run, part: TeacherPart) -> bool:
    """Whether a run's model is the teacher of another: folders may have moved, numbers on the test images stay."""
    own, told = run.result.test, part.test
    return (
        own.num_samples == told.num_samples and own.top1 == told.top1 and math.isclose(own.nll, told.nll, rel_tol=1e-3)
    )


def _teacher_of(run: Run, part: TeacherPart) -> Run:
    trained_here = run.folder / "teacher.safetensors"
    result = Result(
        kind="train",
        role="teacher",
        model=part.model,
        data=run.result.data,
        seed=run.result.seed,
        test=part.test,
        cost=part.cost,
    )
    is_own = trained_here.is_file()
    weights = trained_here if is_own else Path(part.source)
    is_there = weights.is_file() or weights.is_dir()  # and no pipe or device that somebody has named
    return replace(run, result=result, weights=weights if is_there else None, is_own=is_own)


def _grouped(runs: Sequence[Run], left_out: list[str]) -> list[list[Run]]:
    """Runs of one variant together, by rising seed; of equal seeds the first."""
    groups: dict[object, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault((run.result.kind, run.result.role, *flat_settings(run.config).items()), {})
        if run.result.seed in seeds:
            left_out.append(
                f"{shown_path(run.folder)} is a second run of seed {run.result.seed}: the first one counts."
            )
        else:
            seeds[run.result.seed] = run
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in groups.values()]


def _settings(run: Run) -> dict[str, str]:
    """Settings of a run's model; of a teacher that only its student's run tells of, where it came from."""
    return flat_settings(run.config) if run.is_own else {"source": shown_path(run.weights) if run.weights else "-"}


def _settings_in_names(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The same of several, paths cut to what tells them apart."""
    given = [run.weights for run in runs if not run.is_own and run.weights]
    short = dict(zip(given, ends_of(given), strict=True))
    return [
        {"source": short[run.weights]} if run.weights in short and not run.is_own else _settings(run) for run in runs
    ]


def _differing(variants: Sequence[Variant]) -> dict[str, tuple[str, ...]]:
    """Settings with several values among those that have them, but for those that stand in every row's name."""
    settings = [_settings(one.first) if one.runs else {} for one in variants]
    names = [name for name in dict.fromkeys(name for one in settings for name in one) if name not in _IN_EVERY_ROW]
    columns = {name: tuple(one.get(name, "-") for one in settings) for name in names}
    return {name: values for name, values in columns.items() if len({*values} - {"-"}) > 1}
