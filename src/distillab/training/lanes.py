"""Students beside each other: what each is to go through, and where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from distillab.errors import NonFiniteLossError
from distillab.runtime.device import Compute
from distillab.runtime.events import Observer, silent
from distillab.training.compilation import Compilation
from distillab.training.config import Regime
from distillab.training.stage import Feed, Record, Stage, StageReport
from distillab.training.stage_run import StageRun
from distillab.training.state import load_tensors, tensors_of


@dataclass
class Lane:
    """One student's way through its stages, beside others on the same batches.

    Attributes:
        model: The student, which its stages train.
        stages: Ready to run, each with its regime; a stage is asked for when those before it are over.
        observer: Is told of progress.
        record: Takes each epoch's numbers.
        reports: Of the stages that are over.
        error: Why it ended before its time, or None.
    """

    model: nn.Module
    stages: Iterator[tuple[Stage, Regime]]
    observer: Observer = silent
    record: Record | None = None
    reports: list[StageReport] = field(default_factory=list)
    error: NonFiniteLossError | None = None


class LaneRun:
    """Where a lane is: the stage that is under way.

    Attributes:
        lane: Whose.
        run: The stage, or None before the first and after the last.

    Args:
        lane: Whose.
        feed: Images.
        compute: Device and precision.
        compilation: Of the models, or None.
        last_saved: Says which checkpoint is the newest, if there is one.
    """

    def __init__(
        self,
        lane: Lane,
        feed: Feed,
        compute: Compute,
        compilation: Compilation | None,
        last_saved: Callable[[], Path | None],
    ) -> None:
        self.lane = lane
        self.run: StageRun | None = None
        self._feed = feed
        self._compute = compute
        self._compilation = compilation
        self._last_saved = last_saved
        self._is_over = False

    def advance(self, epoch: int) -> bool:
        """Go on to the stage that `epoch` belongs to; returns whether there is still something to do."""
        while not self._is_over and (self.run is None or self._ends_before(self.run, epoch)):
            self._next_stage()
        return not self._is_over

    def takes_part(self, epoch: int) -> bool:
        """Whether the student learns in this epoch: not where its stage begins later, or stopped early."""
        run = self.run
        return not self._is_over and run is not None and not run.is_over and run.stage.first_epoch <= epoch

    def begin_epoch(self, *, anew: bool) -> StageRun:
        """The stage under way, ready for the next pass over the images."""
        assert self.run is not None
        self.run.begin_epoch(anew=anew)
        return self.run

    def look(self, number: int, *, now: bool = False) -> None:
        """After a step; where numbers went bad the student leaves, its update being held back from there on."""
        if self.run is not None and self.lane.error is None:
            with self._leaving_on_bad_numbers():
                self.run.look(number, now=now)

    def end_epoch(self, seconds: float) -> None:
        """After the last step."""
        if self.run is not None and self.lane.error is None:
            student, compilation = self.run.stage.learner.student, self._compilation
            with (
                self._leaving_on_bad_numbers(),
                compilation.paused(student) if compilation else contextlib.nullcontext(),
            ):
                self.run.end_epoch(seconds)

    @contextlib.contextmanager
    def _leaving_on_bad_numbers(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteLossError as error:
            saved = self._last_saved()
            if saved is not None:
                error.where = f"{error.where}; the last checkpoint before it: {saved}"
            self.lane.error = error
            self._is_over = True

    def saved(self) -> dict[str, Any]:
        """What must be known to go on, for a checkpoint."""
        error = self.lane.error
        is_running = self.run is not None and not self._is_over
        return {
            "is_over": self._is_over,
            "error": {"message": error.message, "where": error.where, "hint": error.hint} if error else None,
            "reports": [report.saved() for report in self.lane.reports],
            "run": self.run.saved() if self.run is not None and is_running else None,
            "model": None if is_running else tensors_of(self.lane.model),
        }

    def load(self, saved: Mapping[str, Any], *, epoch: int, step: int) -> None:
        """Go on where another process was.

        Args:
            saved: Of the same lane.
            epoch: The one under way.
            step: Its steps that are done.

        Raises:
            CheckpointError: It is of another stage or model.
        """
        for report in saved["reports"]:
            next(self.lane.stages)
            self.lane.reports.append(StageReport.load(report))
            if self.lane.record is not None:
                for line in self.lane.reports[-1].lines():
                    self.lane.record(line)
        self._is_over = saved["is_over"]
        if saved["error"] is not None:
            self.lane.error = NonFiniteLossError(**saved["error"])
        if saved["run"] is not None:
            self._begin_stage()
            assert self.run is not None
            self.run.load(saved["run"])
            self.run.tell(step if self.takes_part(epoch) else 0)
        else:
            load_tensors(tensors_of(self.lane.model), saved["model"], what="a trained model")

    def close(self) -> None:
        """Put models back to what they were, however it ended, and let a stage that has not ended well go."""
        run, self.run = self.run, None
        if run is not None:
            run.release()

    def _ends_before(self, run: StageRun, epoch: int) -> bool:
        return epoch >= run.stage.first_epoch + run.stage.epochs

    def _next_stage(self) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            if self._compilation is not None:
                self._compilation.release(run.stage.learner.student)  # what follows has batches of other sizes
            with self._leaving_on_bad_numbers():
                self.lane.reports.append(run.finish())
            if self._is_over:
                return
        self._begin_stage()

    def _begin_stage(self) -> None:
        following = next(self.lane.stages, None)
        if following is None:
            self._is_over = True
            return
        stage, regime = following
        self.run = StageRun(
            stage, self._feed, regime, compute=self._compute, observer=self.lane.observer, record=self.lane.record
        )
