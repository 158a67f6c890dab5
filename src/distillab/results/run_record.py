"""One run folder as a plain record: its settings, numbers, epochs and versions. Trusts no file, runs no code."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from distillab.config import AnyConfig, DistillConfig, TrainConfig
from distillab.errors import CheckpointError, ConfigError, StorageError
from distillab.runtime.files import check_format
from distillab.settings import validated

RESULT_FORMAT = 1
"""Of `result.json`."""

_LONGEST_NAME = 120
_LARGEST_COUNT = 10**18
_WITHOUT_IT = "remove its folder and have it made again, or leave it out"
_LARGEST_BYTES = 64 << 20  # epochs of the longest runs take less


def spelt(text: str) -> str:
    """A text in one line, control characters and line breaks spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readable(text: str) -> str:
    """A name as a person can read it: `spelt`, and cut where it is longer than a name is."""
    line = spelt(text)
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 3] + "..."


_Name = Annotated[str, AfterValidator(readable)]
_Share = Annotated[FiniteFloat, Field(ge=0.0, le=1.0)]
_Amount = Annotated[FiniteFloat, Field(ge=0.0)]


class _Record(BaseModel):
    """A part of a file; what else stands there is left alone."""

    model_config = ConfigDict(frozen=True)


class Scores(_Record):
    """Numbers of a model on the test images; see `evaluation.evaluate.Evaluation`."""

    num_samples: int = Field(ge=1)
    top1: _Share
    nll: _Amount
    ece: _Share
    teacher_agreement: _Share | None = None
    teacher_divergence: FiniteFloat | None = None
    top1_where_teacher_wrong: _Share | None = None


class Cost(_Record):
    """What one image costs a model: parameters and multiply-accumulates."""

    parameters: int = Field(ge=0, le=_LARGEST_COUNT)
    macs: int = Field(ge=0, le=_LARGEST_COUNT)


class Timing(_Record):
    """Seconds of training, and of a forward pass of one image."""

    seconds: _Amount | None = None
    latency_seconds: _Amount | None = None


class TeacherPart(_Record):
    """What the result of a distilled student says of its teacher."""

    model: _Name
    source: str
    test: Scores
    cost: Cost


class Weights(_Record):
    """Other weights that a run has kept and tested: the last step's, or those that validation chose."""

    test: Scores
    epoch: int | None = None


class Result(_Record):
    """What `result.json` says of a run."""

    kind: Literal["train", "distill"]
    role: Literal["teacher", "assistant", "student"]
    model: _Name
    data: _Name
    seed: int
    weights: str | None = None
    test: Scores
    cost: Cost
    timing: Timing = Timing()
    best: Weights | None = None
    last: Weights | None = None
    run_sha256: str | None = None
    arithmetic: dict[_Name, _Name | int] = Field(default_factory=dict)
    teacher: TeacherPart | None = None


class Epoch(_Record):
    """A line of `metrics.jsonl`; fractions are 0..1, losses in nats."""

    role: str
    stage: _Name
    loss: FiniteFloat | None = None
    train_top1: _Share | None = None
    validation_top1: _Share | None = None
    validation_loss: FiniteFloat | None = None


class Commit(_Record):
    """State of the source code that a run was made with."""

    commit: _Name
    changed: bool = False


class Environment(_Record):
    """What `env.json` says of the machine and the versions."""

    distillab: _Name
    python: _Name
    platform: _Name
    versions: dict[_Name, _Name]
    device: _Name
    device_name: _Name | None = None
    threads: int
    git: Commit | None = None


@dataclass(frozen=True)
class Run:
    """A run that has come to its end.

    Attributes:
        folder: Where its files are.
        config: Its settings.
        result: Its numbers.
        history: Its epochs, of all roles.
        environment: What it was made with.
        command: What was typed.
        weights: Of the model that it is about; None where none were kept.
        is_own: Whether the run trained the model. False: it tells of a teacher that came from elsewhere.
    """

    folder: Path
    config: AnyConfig
    result: Result
    history: tuple[Epoch, ...]
    environment: Environment
    command: str
    weights: Path | None
    is_own: bool = True

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs of the model that the run is about, in order."""
        return tuple(epoch for epoch in self.history if epoch.role == self.result.role)


def read_result(folder: Path) -> Result:
    """Read what a run has come to.

    Args:
        folder: Of a complete run.

    Raises:
        CheckpointError: The result is missing, damaged, or none of ours.
    """
    return parsed(Result, folder / "result.json", newest=RESULT_FORMAT)


def read_run(folder: Path) -> Run:
    """Read what a complete run says of itself.

    Args:
        folder: Of the run.

    Raises:
        CheckpointError: A file is missing, damaged, or none of ours.
    """
    result = read_result(folder)
    config_path = folder / "config.toml"
    try:
        values = tomllib.loads(_text(config_path))
        alone = result.kind == "train"
        config: AnyConfig = validated(TrainConfig, values) if alone else validated(DistillConfig, values)
    except (ValueError, ConfigError, RecursionError) as error:  # no TOML; a number of thousands of digits
        reason = f"{error.where}: {error.message}" if isinstance(error, ConfigError) else str(error)
        raise damaged(config_path, reason) from error
    metrics = folder / "metrics.jsonl"
    lines = _text(metrics).splitlines() if metrics.exists() else []
    bare = result.weights is not None and result.weights == Path(result.weights).name
    return Run(
        folder,
        config,
        result,
        tuple(_validated(Epoch, _json(line, metrics), metrics) for line in lines),
        parsed(Environment, folder / "env.json"),
        spelt(_text(folder / "command.txt").strip()),
        folder / str(result.weights) if bare else None,
    )


RecordT = TypeVar("RecordT", bound=BaseModel)


def parsed(record: type[RecordT], path: Path, *, newest: int | None = None) -> RecordT:
    """Read a JSON file as a record.

    Args:
        record: Its kind.
        path: Of the file.
        newest: The format that this version writes; None: the file has no formats.

    Raises:
        CheckpointError: It is missing, damaged, of a later version, or holds something else.
    """
    values = _json(_text(path), path)
    if newest is not None and isinstance(values, dict):
        check_format(values, newest, path)
    return _validated(record, values, path)


def _validated(record: type[RecordT], values: object, path: Path) -> RecordT:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{readable(place)}: {first['msg']}") from error


def _json(text: str, path: Path) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(
            "a file of this run is missing",
            where=shown_path(path),
            hint=_WITHOUT_IT,
        )
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(content) > _LARGEST_BYTES:
        raise damaged(path, f"it is larger than {_LARGEST_BYTES >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, reason: str) -> CheckpointError:
    """Say which file is not what it should be."""
    return CheckpointError(
        f"damaged, or no file of a run: {reason}",
        where=shown_path(path),
        hint=_WITHOUT_IT,
    )


def unreadable(path: Path, error: OSError) -> StorageError:
    """Say which file or folder the system does not let us read."""
    return StorageError(
        f"cannot be read: {error.strerror or error}", where=shown_path(path), hint="check its permissions"
    )


def shown_path(path: Path) -> str:
    """A path as text, whatever bytes it is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()
