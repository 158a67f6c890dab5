"""The only loop: some students on the same batches, each going its own way through its stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from distillab.runtime.device import Compute, wait_for
from distillab.runtime.reproducibility import isolated_generators
from distillab.training.compilation import Compilation
from distillab.training.keeper import Phase
from distillab.training.lanes import Lane, LaneRun
from distillab.training.program import Program
from distillab.training.stage import Feed
from distillab.training.stage_run import StageRun, dropout_seed
from distillab.training.state import reading_state


def fit_together(lanes: Sequence[Lane], feed: Feed, *, seed: int, compute: Compute, phase: Phase | None = None) -> None:
    """Train some students on the same batches: each batch is made once, and each teacher asked once.

    Every student ends with the weights that it would have alone. One whose numbers go bad leaves (see `Lane.error`),
    the others go on.

    Args:
        lanes: The students; their reports are filled in.
        feed: Images.
        seed: Of dropout.
        compute: Device, precision, and how steps are executed.
        phase: Saves the state now and then, and says where to go on; None: nothing is saved.

    Raises:
        CheckpointError: The state that was saved is of other stages or models.
        StorageError: The state cannot be saved.
        Interrupted: It has been, and somebody wanted that.
    """
    observer = lanes[0].observer
    program = Program(feed.training, compute, observer=observer)
    with isolated_generators(compute.device), contextlib.ExitStack() as stack:
        stack.callback(program.forget)
        compilation = None
        if compute.execution == "compiled":
            compilation = stack.enter_context(Compilation(observer))
        current = [
            LaneRun(lane, feed, compute, compilation, lambda: phase.last_saved if phase else None) for lane in lanes
        ]
        for one in current:
            stack.callback(one.close)
        at = _Position(current, feed.training.steps_per_epoch, phase)
        while going_on := [one for one in current if one.advance(at.epoch)]:
            taking_part = [one for one in going_on if one.takes_part(at.epoch)]
            if taking_part:
                if compilation is not None:
                    compilation.keep(_models_and_layers(taking_part))
                _run_epoch(taking_part, feed, program, at, seed, compute)
            at.end_epoch()


class _Position:
    """How far some students have come together, and whatever keeps that.

    Attributes:
        epoch: The one under way.
        step: Its steps that are done.
        started: When it began, by `time.perf_counter`.
    """

    def __init__(self, current: Sequence[LaneRun], steps_per_epoch: int, phase: Phase | None) -> None:
        self.epoch = 0
        self.step = 0
        self.started = time.perf_counter()
        self._current = current
        self._steps_per_epoch = steps_per_epoch
        self._phase = phase
        if phase is None:
            return
        if phase.start is not None:
            with reading_state():
                self._load(phase.start)
        phase.begin(self._saved, steps=self._steps)

    def begin_epoch(self) -> None:
        """The clock of an epoch starts, or goes on."""
        if self.step == 0:
            self.started = time.perf_counter()

    def end_step(self) -> None:
        """After a step, and after everybody has had a look at it."""
        self.step += 1
        if self.step < self._steps_per_epoch:
            self._offer()

    def end_epoch(self) -> None:
        """After an epoch, validation included."""
        self.epoch += 1
        self.step = 0
        self._offer()

    @property
    def _steps(self) -> int:
        return self.epoch * self._steps_per_epoch + self.step

    def _offer(self) -> None:
        """Let the state be saved, if it is time."""
        if self._phase is not None:
            self._phase.after_step(self._steps, look=self._look)

    def _look(self) -> bool:
        """Read the numbers of all students; says whether all have diverged."""
        if self.step:
            for one in self._current:
                if one.takes_part(self.epoch):
                    one.look(self.step - 1, now=True)
        return all(one.lane.error for one in self._current)

    def _saved(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": time.perf_counter() - self.started if self.step else 0.0,
            "lanes": [one.saved() for one in self._current],
        }

    def _load(self, saved: Mapping[str, Any]) -> None:
        epoch, step = saved["epoch"], saved["step"]
        if not (type(epoch) is type(step) is int and epoch >= 0 and 0 <= step < self._steps_per_epoch):
            raise ValueError(f"it is at step {step} of epoch {epoch}, an epoch has {self._steps_per_epoch} steps")
        self.epoch, self.step = epoch, step
        self.started = time.perf_counter() - saved["seconds"]
        for one, state in zip(self._current, saved["lanes"], strict=True):
            one.load(state, epoch=self.epoch, step=self.step)


def _models_and_layers(current: Sequence[LaneRun]) -> dict[nn.Module, set[str]]:
    """Students and teachers of the stages under way, with the layers that are read of each."""
    read: dict[nn.Module, set[str]] = {}
    for one in current:
        assert one.run is not None
        stage = one.run.stage
        read.setdefault(stage.learner.student, set()).update([stage.learner.layer] if stage.learner.layer else [])
        teacher = stage.teacher
        if teacher is not None:
            read.setdefault(teacher.model, set()).update(teacher.layers)
    return read


def _run_epoch(
    current: list[LaneRun], feed: Feed, program: Program, at: _Position, seed: int, compute: Compute
) -> None:
    """One pass over the training images, or what is left of it, for all students that take part."""
    at.begin_epoch()
    first = at.step
    runs = [one.begin_epoch(anew=not first) for one in current]
    program.begin_epoch([run.step for run in runs], [run.stage.guidance for run in runs], at.epoch)
    role, steps_per_epoch = runs[0].stage.role, feed.training.steps_per_epoch
    raws = program.with_following(feed.training.raw(at.epoch, start_step=first))
    for number, (raw, following) in enumerate(raws, start=first):
        for run in runs:
            run.set_clock(number)
        program(raw, dropout_seed(seed, role, at.epoch * steps_per_epoch + number), following)
        for one in current:
            one.look(number)
        if all(one.lane.error for one in current):
            return
        at.end_step()
    program.end_epoch(feed.training.left_out(at.epoch, seen_from_step=first))
    wait_for(compute.device)  # a GPU is behind: the time is that of its work, not of handing it over
    for one, seconds in zip(current, _parts(program, runs, time.perf_counter() - at.started), strict=True):
        one.end_epoch(seconds)


def _parts(program: Program, runs: Sequence[StageRun], seconds: float) -> list[float]:
    """Each student's part of an epoch's wall time: a teacher costs those who ask it, the batches cost everybody."""
    is_guided = [run.stage.guidance is not None for run in runs]
    for_batches = (seconds - sum(program.own_seconds) - program.guiding_seconds) / len(runs)
    for_guidance = program.guiding_seconds / max(1, sum(is_guided))
    return [
        own + for_batches + (for_guidance if guided else 0.0)
        for own, guided in zip(program.own_seconds, is_guided, strict=True)
    ]
