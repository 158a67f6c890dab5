"""One run's folder: made for it alone, filled with files that are whole or absent."""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import secrets
import shlex
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from distillab import __version__
from distillab.errors import CheckpointError, RunDirInUseError, StorageError
from distillab.outside_code import mentions_code
from distillab.runtime.events import Event, in_words
from distillab.runtime.files import check_plain, read_json_object, read_record, storage_error, write_text
from distillab.runtime.interruption import resume_command

RUNS = Path("runs")

_LOCK = ".lock"
_HALF_BEGUN = ".tmp-config.toml-"  # all that a run has left that was killed before it had written its settings
_GROUP = "group.json"


class RunDir:
    """A folder that one process owns while it runs.

    Files: `config.toml` (a valid recipe), `env.json`, `command.txt`, `log.txt`, `metrics.jsonl` (one JSON object an
    epoch), `timing.jsonl`, `metrics.csv`, weights as `<role>.safetensors`, and `result.json`, which is written last:
    where it stands, the run is complete.

    Use `new` or `reopen` to make one.

    Args:
        path: The folder; it is there.

    Raises:
        StorageError: The folder cannot be written.
        RunDirInUseError: Another process owns it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: list[Mapping[str, Any]] = []
        self._forgotten: set[str] = set()
        # The kernel gives the lock free when its owner dies, however that happens: a file that is left says nothing.
        self._lock = filelock.FileLock(self.path / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunDirInUseError(
                "another process uses this run folder",
                where=str(self.path),
                hint="wait for it, or choose another folder",
            ) from None
        except OSError as error:
            raise storage_error(error, self.path) from error

    @classmethod
    def new(cls, path: Path | None, *, label: str) -> RunDir:
        """Take a folder for a new run.

        Args:
            path: It must be new or empty. None: a new one under `runs/` whose name holds `label`.
            label: Such as "st-cnn16".

        Raises:
            StorageError: The folder holds something already, or cannot be written.
            RunDirInUseError: Another process owns it.
        """
        run_dir = cls(_make_named(label) if path is None else claim_dir(path))
        try:
            check_free(run_dir.path)  # once more, now that nobody else can put anything in it
        except StorageError:
            run_dir.release()
            raise
        run_dir._remove_leftovers()
        return run_dir

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """Take the folder of a run that is to go on.

        Raises:
            StorageError: It is no run folder, holds a link or a pipe, or cannot be written.
            RunDirInUseError: The run is still going on.
        """
        if not (path / "config.toml").is_file():
            raise StorageError(
                "this is no run folder: there is no config.toml in it",
                where=str(path),
                hint="give the folder that the run was started in; it was named when it began",
            )
        check_plain(path)
        run_dir = cls(path)
        run_dir._remove_leftovers()
        return run_dir

    @property
    def is_complete(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "result.json").is_file()

    def release(self) -> None:
        """Give the folder up to whoever wants to read or resume it."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # in a folder that can no longer be written it stays, and says nothing
                (self.path / _LOCK).unlink()  # before: who takes it afterwards makes a new one
            self._lock.release()

    def _remove_leftovers(self) -> None:
        """Remove the half-written files of a process that was killed."""
        try:
            for leftover in self.path.glob(".tmp-*"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            self.release()
            raise storage_error(error, self.path) from error

    def describe(self, *, command: Sequence[str], device: torch.device, threads: int) -> None:
        """Write down what was asked for and where it is run: before the first step, after the settings."""
        write_text(self.path / "command.txt", shlex.join(command) + "\n")
        self.write_json("env.json", environment(device, threads))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one epoch's numbers to `metrics.jsonl`; its seconds, which no two runs share, to `timing.jsonl`."""
        where = {key: record[key] for key in ("stage", "epoch")}
        numbers = {key: value for key, value in record.items() if key != "seconds"}
        self._append("metrics.jsonl", json.dumps(numbers, sort_keys=True))
        self._append("timing.jsonl", json.dumps({**where, "seconds": record["seconds"]}, sort_keys=True))
        self._metrics.append(numbers)

    def forget_metrics(self) -> None:
        """Let `metrics.jsonl` and `timing.jsonl` begin anew with the next epoch's numbers; until then they stay.

        A run that goes on adds again what its checkpoint knows; one that may not go on loses nothing.
        """
        self._metrics = []
        self._forgotten = {"metrics.jsonl", "timing.jsonl"}

    def write_metrics_table(self) -> None:
        """Write all numbers of all epochs as `metrics.csv`, for spreadsheets; what a stage does not have is empty."""
        columns = dict.fromkeys(name for numbers in self._metrics for name in numbers)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._metrics)
        write_text(self.path / "metrics.csv", text.getvalue())

    def log(self, event: Event) -> None:
        """Add what a reader wants to know to `log.txt`, a line an event, with the time."""
        text = in_words(event)
        if text is not None:
            self._append("log.txt", f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {text}")

    def _append(self, name: str, line: str) -> None:
        path = self.path / name
        try:
            mode = "w" if name in self._forgotten else "a"
            with path.open(mode, encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(line + "\n")
            self._forgotten.discard(name)
        except OSError as error:
            raise storage_error(error, path) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON file, whole or not at all."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")


def checkpoints_of(home: Path) -> Path:
    """Where a run, or a group of runs, keeps its checkpoints."""
    return home / "checkpoints"


def write_group(folder: Path, names: Sequence[str]) -> None:
    """Write down which run folders of `folder` are carried out together."""
    write_text(folder / _GROUP, json.dumps({"format_version": 1, "runs": list(names)}, indent=2) + "\n")


def is_group(folder: Path) -> bool:
    """Whether run folders of `folder` are, or were, carried out together."""
    return (folder / _GROUP).is_file()


def read_group(folder: Path) -> list[Path] | None:
    """The run folders that are carried out together; None where `folder` is not one of a group.

    Raises:
        CheckpointError: What is written there is damaged, or leads out of the folder.
        StorageError: It cannot be read, or there is a link or a pipe in the folder.
    """
    path = folder / _GROUP
    try:
        names = read_json_object(path).get("runs")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, path) from error
    check_plain(folder)
    if not isinstance(names, list) or not names or not all(_is_plain_name(name) for name in names):
        raise CheckpointError("it does not name run folders beside it", where=str(path), hint="start the runs again")
    return [folder / name for name in names]


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def new_run_name(label: str) -> str:
    """`<date>-<time>-<label>-<4 hex>`, in local time."""
    now = datetime.datetime.now().astimezone()
    return f"{now:%Y%m%d-%H%M%S}-{label}-{secrets.token_hex(2)}"


def _make_named(label: str) -> Path:
    for _ in range(100):
        path = RUNS / new_run_name(label)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(error, path) from error
        return path
    raise StorageError("found no free name for a run folder", where=str(RUNS), hint="give --output DIR")


def claim_dir(path: Path) -> Path:
    """Make a folder, or take an empty one.

    Raises:
        StorageError: It holds something already, is a file, or cannot be made.
    """
    check_free(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def check_free(path: Path) -> None:
    """See that a folder is not there yet, or empty. Makes and changes nothing.

    Raises:
        StorageError: It holds something already, is a file, or cannot be read.
    """
    try:
        if path.is_file():
            raise StorageError("the run folder is a file", where=str(path), hint="choose another --output")
        found = [entry for entry in path.iterdir() if entry.name != _LOCK and not entry.name.startswith(_HALF_BEGUN)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, path) from error
    if not found:
        return
    if go_on := _words_to_go_on(path):
        raise StorageError(
            "the run folder holds a run that has not come to its end",
            where=str(path),
            hint=f"let it go on: {go_on}; or choose a new folder",
        )
    raise StorageError(
        f"the run folder is not empty: it holds '{found[0].name}'",
        where=str(path),
        hint="choose a new folder, or leave --output out to get one under runs/",
    )


def _words_to_go_on(path: Path) -> str | None:
    """The command that lets a run go on; None where there is none, or it is complete."""
    try:
        settings = tomllib.loads(read_record(path / "config.toml").decode())
    except (OSError, ValueError, RecursionError, CheckpointError):
        return None
    if not settings or (path / "result.json").exists():
        return None
    return resume_command(path, allow_code=mentions_code(settings))


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, device and state of the source code that a run is made with."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "scipy", "scikit-learn", "pillow", "safetensors", "pydantic")
    }
    return {
        "distillab": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": device.type,
        "device_name": device_name(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": threads,
        "cpu_count": os.cpu_count(),
        "git": _git_state(),
    }


def device_name(device: torch.device) -> str:
    """What the device is called by its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    """Commit of the source that is running, and whether it was changed since; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # an installed copy inside somebody else's repository
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
