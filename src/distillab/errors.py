"""What can go wrong, each kind with the exit code of the command line.

    DistillabError                    1   a bug, or anything not listed below
    +-- ConfigError                   2   a setting, flag or combination that cannot work
    |   +-- ShapeError                2   tensors or layers that do not fit together
    +-- DataError                     3   images, labels, archives, downloads
    +-- CheckpointError               4   weight files that are missing, damaged or of another model
    +-- StorageError                  4   folders and disks: no permission, full, vanished
    +-- NonFiniteLossError            5   training diverged
    +-- GuardError                    1   a rule of distillation was broken, by a bug or by a model of one's own
    +-- RunDirInUseError             75   another process owns the run folder
    +-- Interrupted            130, 143   Ctrl-C, SIGTERM: the run was saved and has stopped

A message has three parts: what is wrong, where (a field, a file, a layer), and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_MOST_TOLD = 3


class DistillabError(Exception):
    """Root of every deliberate error.

    Args:
        message: What is wrong, one sentence, with the offending value.
        where: The field (`optimizer.learning_rate`), file or layer it concerns.
        hint: The next step: a command to run, the nearest right name, a setting to change.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(message, where, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes nothing is lost: neither where it was, nor what to do, nor notes."""
        return _as_it_was, (type(self), self.args), dict(vars(self))

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  try:   {self.hint}")
        return "\n".join(lines)


def _as_it_was(kind: type[DistillabError], args: tuple[Any, ...]) -> DistillabError:
    """An error on its arrival, before its attributes are put back: each kind is made of something else."""
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(DistillabError, ValueError):
    """A setting, flag or combination of them that cannot work."""

    exit_code = 2


class ShapeError(ConfigError):
    """Tensors, layers or models that do not fit together."""


class DataError(DistillabError):
    """Images, labels, archives or downloads that cannot be used."""

    exit_code = 3


class CheckpointError(DistillabError):
    """A weight file that is missing, damaged, unsafe, or belongs to another model."""

    exit_code = 4


class StorageError(DistillabError):
    """A folder or disk that does not take or give what is asked of it."""

    exit_code = 4


class NonFiniteLossError(DistillabError):
    """The loss became NaN or infinite: training diverged."""

    exit_code = 5


class GuardError(DistillabError):
    """What must be true of any distillation was not: the teacher changed, or the student did not."""


class RunDirInUseError(DistillabError):
    """Another process owns the run folder."""

    exit_code = 75


class Interrupted(DistillabError):  # noqa: N818 - nothing went wrong
    """Somebody asked the process to stop, and the run has been saved.

    Args:
        message: Where it stopped.
        signal_number: Of the signal that came.
        where: The checkpoint.
        hint: The command that goes on.
    """

    def __init__(self, message: str, *, signal_number: int, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.exit_code = 128 + signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint for an unknown name: the nearest right one, then all of them.

    Args:
        name: What was asked for.
        known: Every name that would have worked.

    Returns:
        "did you mean 'st'? known: fitnet, mbd-delta, ..." or only the list where nothing is near.
    """
    names = sorted(known)
    listing = "known: " + ", ".join(names)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? {listing}" if close else listing


def few_of(words: Sequence[str]) -> str:
    """Some sentences of a list as one line: the first three, and how many more there are."""
    more = f" (and {len(words) - _MOST_TOLD} more)" if len(words) > _MOST_TOLD else ""
    return f"{'; '.join(words[:_MOST_TOLD])}{more}"
