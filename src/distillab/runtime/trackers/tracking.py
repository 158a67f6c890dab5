"""The trackers of a run: begun with it, told its numbers, and never in its way."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distillab.errors import CheckpointError, ConfigError
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import read_json_object, write_text
from distillab.runtime.trackers.base import Setting, TrackedEpoch, TrackedRun, Tracker, plain
from distillab.runtime.trackers.mlflow import MLflow
from distillab.runtime.trackers.tensorboard import TensorBoard
from distillab.runtime.trackers.wandb import WandB

_RUN_IDS = "trackers.json"

# What means the same in every stage and method is one curve of the role, so that runs lie upon each other.
_OF_ANY_STAGE = ("train_top1", "validation_top1", "validation_loss", "learning_rate", "seconds")

_KINDS: Mapping[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
_NEEDED = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


class Trackers:
    """The trackers of a run, told in a thread of their own: a slow disk or network does not hold the training up.

    What goes wrong with one is said once; the run goes on without it.

    Args:
        trackers: By name.
        observer: Is told which could not be used.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, observer: Observer = silent) -> None:
        self._trackers = dict(trackers or {})
        self._observer = observer
        self._errors: dict[str, Exception] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self._epochs: Counter[str] = Counter()
        self._complete = False

    @classmethod
    def start(cls, names: Sequence[str], folder: Path, settings: Mapping[str, Any], observer: Observer) -> Trackers:
        """Begin with a run, or go on with one.

        Args:
            names: Of the trackers.
            folder: Of the run.
            settings: Of the run: plain values, nested.
            observer: Is told which cannot be used.

        Raises:
            StorageError: The run folder cannot be written.
        """
        if not names:
            return cls()
        known = _read_run_ids(folder)
        by_name = {name: _setting(value) for name, value in _flat(settings, ".")}
        trackers: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                trackers[name] = _KINDS[name](TrackedRun(folder, by_name, known.get(name)))
            except Exception as error:  # whatever the tool may raise: the run matters more
                observer(_given_up(name, error))
        known |= {name: tracker.run_id for name, tracker in trackers.items() if tracker.run_id is not None}
        write_text(folder / _RUN_IDS, json.dumps(known) + "\n")
        return cls(trackers, observer)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Tell an epoch's numbers.

        Args:
            line: As in `metrics.jsonl`.
        """
        role = line["role"]
        self._epochs[role] += 1
        stage = f"{role}/{line['stage'].removeprefix(f'{role} ')}"
        values = {
            f"{role if name in _OF_ANY_STAGE else stage}/{name}": value
            for name, value in _numbers(line)
            if name != "epoch"
        }
        epoch = TrackedEpoch(role, self._epochs[role], self._epochs.total(), values)
        self._tell(lambda tracker: tracker.epoch(epoch))

    def result(self, summary: Mapping[str, Any]) -> None:
        """Tell the numbers on the test images: the run is complete.

        Args:
            summary: As in `result.json`.
        """
        self._complete = True
        numbers = {name: value for name, value in _numbers(summary) if "test" in name.split("/")}
        self._tell(lambda tracker: tracker.result(numbers))

    def end(self) -> None:
        """Wait until all is told, and let the trackers go."""
        self._tell(lambda tracker: tracker.end(complete=self._complete))
        self._worker.shutdown()
        self._report()
        self._trackers.clear()

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        self._report()
        for name, tracker in self._trackers.items():
            self._worker.submit(self._attempt, name, tracker, tell)

    def _attempt(self, name: str, tracker: Tracker, tell: Callable[[Tracker], None]) -> None:
        if name in self._errors:
            return
        try:
            tell(tracker)
        except Exception as error:  # as in `start`
            self._errors[name] = error

    def _report(self) -> None:
        """Say what went wrong in the other thread: observers are told by the one that trains alone."""
        for name in [name for name in self._trackers if name in self._errors]:
            del self._trackers[name]
            self._observer(_given_up(name, self._errors[name]))


def check_installed(names: Sequence[str]) -> None:
    """See that the libraries of trackers are there, without importing them.

    Raises:
        ConfigError: One is missing.
    """
    for name in names:
        for package in _NEEDED[name]:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None:  # a folder that the tool has made looks like a package
                raise ConfigError(
                    f"{name} cannot track the run: the package {package} is not installed",
                    where="track",
                    hint=f"pip install 'distillab[{name}]', or leave {name} out",
                )


def _given_up(name: str, error: Exception) -> Note:
    """One line, whatever the tool says."""
    reason = " ".join(plain(str(error)).split())[:200]
    return Note(f"{name} does not track the run, which goes on without: {type(error).__name__}: {reason}")


def _read_run_ids(folder: Path) -> dict[str, str]:
    """What trackers called the run; nothing where that is not known, and they begin anew."""
    try:
        found = read_json_object(folder / _RUN_IDS)
    except (CheckpointError, OSError):
        return {}
    return {name: found[name] for name in _KINDS if isinstance(found.get(name), str)}


def _flat(values: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}{separator}{inner}", leaf) for inner, leaf in _flat(value, separator))
        else:
            yield name, value


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _flat(values, "/"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def _setting(value: Any) -> Setting:
    return value if isinstance(value, bool | int | float) else plain(str(value))
