"""What a tracker is told of a run. The tools' libraries are optional: they are imported when a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distillab.runtime.run_dir import is_group

Setting = bool | int | float | str

PROJECT = "distillab"
"""What runs are filed under where the user's environment says nothing else."""

ROLES = ("teacher", "assistant", "student")


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes:
        folder: Of the run.
        settings: Of the run, by dotted name.
        run_id: What the tracker called the run when it began; None: it begins now.
    """

    folder: Path
    settings: Mapping[str, Setting]
    run_id: str | None

    @property
    def name(self) -> str:
        """For people; of a run that was started together with others their folder's name as well: "seed-1/st"."""
        home = self.folder.absolute()
        return plain(f"{home.parent.name}/{home.name}" if is_group(home.parent) else home.name)


@dataclass(frozen=True)
class TrackedEpoch:
    """The numbers of an epoch.

    Attributes:
        role: Who learns.
        epoch: Of the role, over all its stages, from 1: what curves are drawn over.
        number: Of the run, over all roles, from 1.
        values: By name, "<role>/<stage>/<name>": "student/by fitnet (hint)/loss".
    """

    role: str
    epoch: int
    number: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """One tool's record of one run.

    A run that goes on tells all its epochs again, from the first one: what the tool has already must not be doubled.
    """

    @property
    def run_id(self) -> str | None:
        """What the tool calls the run; None where it needs no name to go on."""

    def epoch(self, epoch: TrackedEpoch) -> None:
        """Take an epoch's numbers."""

    def result(self, numbers: Mapping[str, float]) -> None:
        """Take the numbers on the test images, by name: "test/top1", "teacher/test/top1"."""

    def end(self, *, complete: bool) -> None:
        """Write down what is left, and whether the run has come to its end or may go on."""


def plain(text: str) -> str:
    """Text that every tool can store: names of files need not be UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
