"""A run's files, held against their hashes and against each other."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillab.config import AnyConfig
from distillab.errors import CheckpointError, DistillabError, Interrupted
from distillab.models.weight_files import read_weights
from distillab.outcome import file_sha256
from distillab.results.run_record import RESULT_FORMAT
from distillab.resume import read_config
from distillab.runtime.files import check_format, read_json_object
from distillab.runtime.run_dir import checkpoints_of
from distillab.tables import amount
from distillab.training.checkpoint import Checkpoint, CheckpointDir, read_checkpoint
from distillab.training.stage import lines
from distillab.training.state import reading_state

_LARGEST_TEXT = 256 << 20  # bytes; the log of a year's training has less
_NO_RESULT = "no result.json to hold it against"

Numbers = dict[str, float | None]
_FileName = Annotated[str, Field(pattern=r"^[^/]+$")]  # a run folder must not lead out of itself


class _Tested(BaseModel):
    """Weights in a file, and what they were worth on the test images."""

    model_config = ConfigDict(frozen=True)

    weights: _FileName | None = None
    test: Numbers | None = None


class _Stage(BaseModel):
    title: str
    epochs: int


class _Role(_Tested):
    best: _Tested | None = None
    last: _Tested | None = None
    stages: tuple[_Stage, ...] = ()


class Result(_Role):
    """What `result.json` must say; whatever else it says is left alone."""

    format_version: int
    run_sha256: str
    seed: int
    data: str
    teacher: _Role | None = None
    assistant: _Role | None = None
    files: dict[_FileName, str] = Field(default_factory=dict)

    @property
    def tested(self) -> list[tuple[str, Numbers]]:
        """Weight files with their numbers on the test images, the teacher's aside; what is said twice stands once."""
        parts = [part for role in (self, self.assistant) if role for part in (role, role.best, role.last) if part]
        found = [(part.weights, part.test) for part in parts if part.weights and part.test]
        return [one for number, one in enumerate(found) if one not in found[:number]]

    @property
    def epochs(self) -> Counter[str]:
        """Of each stage, by its title."""
        found: Counter[str] = Counter()
        for stage in (*self.stages, *(self.teacher.stages if self.teacher else ())):
            found[stage.title] += stage.epochs
        return found


@dataclass(frozen=True)
class Finding:
    """What came of one look at a run.

    Attributes:
        what: A file, or what was computed again.
        found: In words; of what was not looked at, why.
        verdict: Whether it is as the run says.
    """

    what: str
    found: str
    verdict: Literal["good", "differs", "not looked at"] = "good"


class NotLookedAtError(Exception):
    """There is nothing to look at, or nothing to hold it against; says why."""


def looked_at(what: str, look: Callable[[], str]) -> Finding:
    """What comes of a look.

    Args:
        what: At what.
        look: Says what is good about it. What is not is an error; a NotLookedAtError stands for no verdict at all.
    """
    try:
        return Finding(what, look())
    except NotLookedAtError as reason:
        return Finding(what, str(reason), "not looked at")
    except Interrupted:
        raise
    except DistillabError as error:
        return Finding(what, error.message, "differs")
    except OSError as error:
        return Finding(what, f"it cannot be read: {error.strerror or error}", "differs")


class RunFiles:
    """The files of a run; what is read of them is known after `look`.

    Attributes:
        folder: Of the run.
        result: What `result.json` says; None while the run is not complete.
        config: Its settings; None where they are not known.
        obstacle: Why they are not.
        log: The lines of `metrics.jsonl`; None where they cannot be trusted.
        environment: The content of `env.json`.
        made_by: Of the newest whole checkpoint; empty without one.
        checkpoint: The oldest one that the log goes on from; None: there is none.
        num_held: Lines of the log that it knows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: Result | None = None
        self.config: AnyConfig | None = None
        self.obstacle = "config.toml cannot be used"
        self.log: list[dict[str, Any]] | None = None
        self.environment: dict[str, Any] = {}
        self.made_by: dict[str, Any] = {}
        self.checkpoint: Checkpoint | None = None
        self.num_held = 0

    def look(self) -> list[Finding]:
        """Read everything, and hold it against everything else. No code that the files name is run."""
        findings = [
            looked_at("result.json", self._look_at_result),
            looked_at("env.json", self._look_at_environment),
            looked_at("config.toml", self._look_at_settings),
            looked_at("metrics.jsonl", self._look_at_log),
            looked_at("metrics.csv", self._look_at_table),
        ]
        present = {path.name for path in self.folder.glob("*.safetensors")}
        named = {name for name in self.result.files if name.endswith(".safetensors")} if self.result else set()
        findings += [looked_at(name, partial(self._look_at_weights, name)) for name in sorted(present | named)]
        return findings + look_at_checkpoints(self.folder, self._look_at_checkpoint)

    def seconds(self, line: Mapping[str, Any]) -> float | None:
        """How long an epoch of the log took in the run; None where that is not known."""
        try:
            for text in self._file("timing.jsonl").read_bytes().splitlines():
                timing = json.loads(text)
                if all(timing[key] == line[key] for key in ("stage", "epoch")):
                    return float(timing["seconds"])
        except (CheckpointError, OSError, ValueError, TypeError, KeyError, RecursionError):
            pass  # it is for people, and nothing depends on it
        return None

    def _look_at_result(self) -> str:
        if not (self.folder / "result.json").exists():
            raise NotLookedAtError("the run is not complete")
        content = read_json_object(self._file("result.json"))
        check_format(content, RESULT_FORMAT, self.folder / "result.json")
        try:
            self.result = Result.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return "the run is complete"

    def _look_at_environment(self) -> str:
        if not (self.folder / "env.json").exists():
            raise NotLookedAtError("it is not there")
        self.environment = read_json_object(self._file("env.json"))
        return "it says where the run was made"

    def _look_at_settings(self) -> str:
        try:
            self.config = read_config(self.folder, allow_code=True)  # which does not run it
        except CheckpointError as error:  # of the teacher, which may have been moved: the settings are as they were
            self.obstacle = f"{error.message}: {error.where}"
        return "the settings of a run"

    def _look_at_log(self) -> str:
        if self.result is None and not (self.folder / "metrics.jsonl").exists():
            self.log = []
            raise NotLookedAtError("no epoch is complete yet")
        log = list(_read_log(self._file("metrics.jsonl"), may_be_torn=self.result is None))
        counts = Counter(line["stage"] for line in log)
        if self.result is not None:
            expected = self.result.epochs
            for title in {**counts, **expected}:
                if counts[title] != expected[title]:
                    raise CheckpointError(
                        f"{amount(counts[title], 'epoch')} of '{title}', {expected[title]} in result.json"
                    )
        self.log = log
        return f"epochs: {len(log)}{self._as_hashed('metrics.jsonl')}"

    def _look_at_table(self) -> str:
        if self.result is None:
            raise NotLookedAtError(_NO_RESULT)
        if self.log is None:
            raise NotLookedAtError("no metrics.jsonl to hold it against")
        try:
            with self._file("metrics.csv").open(newline="", encoding="utf-8") as stream:
                rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
        except (csv.Error, ValueError) as error:
            raise CheckpointError(f"it is no table: {error}") from error
        if rows != [{name: str(value) for name, value in line.items()} for line in self.log]:
            raise CheckpointError("its numbers are not those of metrics.jsonl")
        return f"the numbers of metrics.jsonl{self._as_hashed('metrics.csv')}"

    def _look_at_weights(self, name: str) -> str:
        _, metadata = read_weights(self._file(name))
        if self.result is None:
            return "whole"
        source = metadata.get("source")
        for key in ("run_sha256", "seed", "data"):
            own, expected = (source.get(key) if isinstance(source, dict) else None), getattr(self.result, key)
            if own != expected:
                raise CheckpointError(f"its {key} is {own}, in result.json {expected}")
        return f"whole, and of this run{self._as_hashed(name)}"

    def _look_at_checkpoint(self, checkpoint: Checkpoint) -> str:
        self.made_by = checkpoint.made_by
        words = f"whole, after step {checkpoint.step:,}"
        if self.log is None:
            return words
        held = _lines_of(checkpoint)
        if held != self.log[: len(held)]:
            raise CheckpointError(f"the {len(held)} epochs in it are not the first ones of metrics.jsonl")
        if self.checkpoint is None and len(held) < len(self.log):
            self.checkpoint, self.num_held = checkpoint, len(held)
        return f"{words}; its epochs are the first {len(held)} of the log"

    def _file(self, name: str) -> Path:
        """A file that must be there, and can be read to its end."""
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError("it is a folder or a device, no file" if path.exists() else "it is not there")
        if path.stat().st_size > _LARGEST_TEXT and path.suffix != ".safetensors":
            raise CheckpointError(f"it has {path.stat().st_size:,} bytes, more than a run writes")
        return path

    def _as_hashed(self, name: str) -> str:
        """Hold a file against its hash in `result.json`; what to say of it."""
        recorded = self.result.files.get(name) if self.result else None
        if recorded is None:
            return ""
        if file_sha256(self._file(name)) != recorded:
            raise CheckpointError("its SHA-256 is not that in result.json")
        return "; SHA-256 as in result.json"


def look_at_checkpoints(home: Path, look: Callable[[Checkpoint], str]) -> list[Finding]:
    """What comes of a look at the checkpoints of a run, or of runs that were carried out together.

    Args:
        home: Their folder.
        look: At one that is whole, the oldest first.
    """
    folder = CheckpointDir(checkpoints_of(home), keep=1)
    return [
        looked_at(f"{folder.path.name}/{place.name}", lambda place=place: look(read_checkpoint(place)))  # type: ignore[misc]
        for place in reversed(folder.places())
    ]


def _read_log(path: Path, *, may_be_torn: bool) -> Iterator[dict[str, Any]]:
    """The epochs in `metrics.jsonl`.

    Args:
        path: Of the file.
        may_be_torn: Leave out a last line without an end: the process was killed while it wrote.

    Raises:
        CheckpointError: A line is none of a log, or does not follow the one before.
    """
    done: Counter[str] = Counter()
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if may_be_torn and not text.endswith(b"\n"):
            return
        try:
            line = json.loads(text)
            title, epoch = line["stage"], line["epoch"]
            done[title] += 1
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f"line {number} is damaged") from error
        if epoch != done[title]:
            raise CheckpointError(f"line {number} is epoch {epoch} of '{title}', not epoch {done[title]}")
        yield line


def _lines_of(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """What a run's log said when the checkpoint was made."""
    with reading_state():
        return [
            {name: value for name, value in line.items() if name != "seconds"}
            for phase in checkpoint.state["phases"]
            for lane in phase["lanes"]
            for stage in (*lane["reports"], *([lane["run"]] if lane["run"] else []))
            for line in lines(stage["title"], phase["name"], stage["history"])
        ]
