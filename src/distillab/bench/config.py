"""Settings of `distillab bench`, and what they ask to be measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from distillab.errors import ConfigError, nearest
from distillab.models.catalog import MODELS
from distillab.settings import Section
from distillab.stages import ALONE, PLANS, find_plan
from distillab.training.config import Execution, Precision


@dataclass(frozen=True)
class Case:
    """One comparison: the same work by the same method, on every path.

    Attributes:
        work: "cnn8-cnn16", teacher and student, or "cnn8", a model alone.
        method: A plan's name, or `ALONE`.
        student: Who learns: a model's name.
        teacher: Who guides it; None for a model alone.
    """

    work: str
    method: str
    student: str
    teacher: str | None


DEFAULT_CASES: tuple[tuple[str, str], ...] = (
    ("cnn8-cnn16", "st"),
    ("cnn8-cnn16", "mbd-delta"),
    ("cnn8", ALONE),
    ("cnn16", ALONE),
    ("resnet50-resnet98", "st"),
)
"""Work and method of each comparison that is made unasked: together they end within five minutes on two slow cores."""

_DEFAULT_WORKS = tuple(dict.fromkeys(work for work, _ in DEFAULT_CASES))


class BenchConfig(Section):
    """Settings of `distillab bench`."""

    work: tuple[str, ...] = Field(
        (),
        description="What is trained: teacher-student, or a model alone; several by commas or words. "
        f"{', '.join(_DEFAULT_WORKS)} if not given.",
    )
    method: tuple[str, ...] = Field(
        (),
        description=f"By which method: st, mbd-delta, mbd-hard, mbd-soft, or {ALONE} for models alone. "
        "A few of them if not given.",
    )
    batch_size: int = Field(128, ge=1, description="Images a step.")
    students: int = Field(
        1,
        ge=1,
        description="So many learn side by side in our own paths, from the same batches and the same teacher; images/s "
        "is that of all. The classic loop trains one.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    precision: Precision = Field("auto", description="Of our own paths; the classic loop is float32 throughout.")
    execution: Execution = Field(
        "auto", description="How our own steps run; auto takes what a training of thirty epochs of CIFAR-10 would."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; one a core if not given.")
    rounds: int = Field(5, ge=2, description="How often the paths take turns, at most.")
    seconds: float = Field(
        240.0,
        gt=0.0,
        allow_inf_nan=False,
        description="About how long to measure in all; fewer rounds and steps are taken to keep to it, two rounds of "
        "one step at least.",
    )
    data: str | None = Field(
        None, description="A data set's name, or a path; seeded noise of CIFAR-10's shape if not given."
    )
    data_dir: Path = Field(Path("data"), description="Where downloads and decoded images are kept.")
    profile: Path | None = Field(
        None, description="Write a trace of our own steps (the first comparison's) to this .json file, for Perfetto."
    )


def planned_cases(config: BenchConfig) -> tuple[Case, ...]:
    """What is to be compared, in order.

    Args:
        config: Its `work` and `method`; every work is measured by every method that fits it.

    Raises:
        ConfigError: A name is unknown; a work that no method fits, or a method that fits no work.
    """
    works, methods = _words(config.work), _words(config.method)
    if not works and not methods:
        return tuple(_case(work, method) for work, method in DEFAULT_CASES)
    for method in methods:
        _check_method(method)
    pairs = [
        (work, method)
        for work in works or _DEFAULT_WORKS
        for method in methods or _usual_methods(work)
        if _fits(work, method)
    ]
    measured_works, measured_methods = {work for work, _ in pairs}, {method for _, method in pairs}
    for work in works:
        if work not in measured_works:
            hint = "add a method with a teacher: st" if "-" in work else f"add --method {ALONE}"
            raise ConfigError(f"none of the methods fits the work '{work}'", where="method", hint=hint)
    for method in methods:
        if method not in measured_methods:
            hint = "add a model alone: --work cnn8" if method == ALONE else "add teacher and student: --work cnn8-cnn16"
            raise ConfigError(f"none of the works fits the method '{method}'", where="work", hint=hint)
    return tuple(_case(work, find_plan(method).name if method != ALONE else method) for work, method in pairs)


def _words(values: Iterable[str]) -> tuple[str, ...]:
    """The words of a list whose entries may hold several, by commas; each once."""
    return tuple(dict.fromkeys(word for value in values for word in value.split(",") if word))


def _case(work: str, method: str) -> Case:
    *teacher, student = _models(work)
    return Case(work, method, student, teacher[0] if teacher else None)


def _models(work: str) -> Sequence[str]:
    """The models of a work: (teacher, student), or (model,)."""
    names = work.split("-")
    if len(names) > 2 or not all(name in MODELS for name in names):
        raise ConfigError(f"unknown work '{work}'", where="work", hint=nearest(work, _known_works()))
    return names


def _known_works() -> list[str]:
    """Every model alone, and every larger one with a smaller one of its family; other pairs work as well."""
    pairs = [
        f"{teacher.name}-{student.name}"
        for teacher in MODELS.values()
        for student in MODELS.values()
        if teacher.family == student.family and teacher.macs > student.macs
    ]
    return [*MODELS, *pairs]


def _usual_methods(work: str) -> tuple[str, ...]:
    return ("st", "mbd-delta") if len(_models(work)) == 2 else (ALONE,)


def _fits(work: str, method: str) -> bool:
    return (len(_models(work)) == 1) == (method == ALONE)


def _check_method(name: str) -> None:
    """Let through what the classic loop does as well: plans of one stage, from a teacher's logits to a student."""
    known = [plan.name for plan in PLANS.values() if len(plan.stages) == 1]
    if name != ALONE and find_plan(name).name not in known:
        raise ConfigError(
            f"'{name}' has several stages, which are not measured as one", where="method", hint=nearest(name, known)
        )
