"""The only loop: some students on the same batches, each going its own way through its stages."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from distillab.errors import NonFiniteLossError
from distillab.guidance.cached import CachedTeacher
from distillab.guidance.live import LiveTeacher
from distillab.runtime.device import Compute
from distillab.runtime.events import Observer, silent
from distillab.runtime.reproducibility import isolated_generators
from distillab.training.compilation import Compilation
from distillab.training.config import Regime
from distillab.training.optimizer import make_optimizer
from distillab.training.program import Program
from distillab.training.running import StageRun, dropout_seed
from distillab.training.stage import Feed, Record, Stage, StageReport
from distillab.training.step import Step, trainable

_TRIAL_IMAGES = 16


@dataclass
class Lane:
    """One student's way through its stages, beside others on the same batches.

    Attributes:
        stages: Ready to run, each with its regime; a stage is asked for when those before it are over.
        observer: Is told of progress.
        record: Takes each epoch's numbers.
        reports: Of the stages that are over.
        error: Why it ended before its time, or None.
    """

    stages: Iterator[tuple[Stage, Regime]]
    observer: Observer = silent
    record: Record | None = None
    reports: list[StageReport] = field(default_factory=list)
    error: NonFiniteLossError | None = None


def fit(
    stage: Stage,
    feed: Feed,
    regime: Regime,
    *,
    seed: int,
    compute: Compute,
    observer: Observer,
    record: Record | None = None,
) -> StageReport:
    """Train one stage; the learner's student holds the resulting weights afterwards.

    Args:
        stage: What is trained, and for how long.
        feed: Images.
        regime: Optimizer, schedule and the rest.
        seed: Of dropout here; order and augmentation are in the feed.
        compute: Device, precision, and how steps are executed.
        observer: Is told of progress.
        record: Takes each epoch's numbers.

    Returns:
        What was done.

    Raises:
        NonFiniteLossError: A loss term or the gradient became NaN or infinite; the weights that learn are those
            before that step (BatchNorm's running statistics have seen its batch).
    """
    lane = Lane(iter([(stage, regime)]), observer, record)
    fit_together([lane], feed, seed=seed, compute=compute)
    if lane.error is not None:
        raise lane.error
    return lane.reports[0]


def fit_together(lanes: Sequence[Lane], feed: Feed, *, seed: int, compute: Compute) -> None:
    """Train some students on the same batches: each batch is made once, and each teacher asked once.

    Every student ends with the weights that it would have alone. One whose numbers go bad leaves (see `Lane.error`),
    the others go on.

    Args:
        lanes: The students; their reports are filled in.
        feed: Images.
        seed: Of dropout.
        compute: Device, precision, and how steps are executed.
    """
    observer = lanes[0].observer
    program = Program(feed.training, compute, observer=observer)
    epoch = 0
    with isolated_generators(compute.device), contextlib.ExitStack() as stack:
        compilation = None
        if compute.execution == "compiled":
            compilation = stack.enter_context(Compilation(observer))
        current = [_Current(lane, feed, compute, compilation) for lane in lanes]
        for one in current:
            stack.callback(one.close)
        while going_on := [one for one in current if one.advance(epoch)]:
            taking_part = [one for one in going_on if one.takes_part(epoch)]
            if taking_part:
                if compilation is not None:
                    compilation.keep(_models_and_layers(taking_part))
                _run_epoch(taking_part, feed, program, epoch, seed)
            epoch += 1


def seconds_per_step(stage: Stage, feed: Feed, regime: Regime, compute: Compute) -> float:
    """Wall time of one step, measured on copies of what would learn; on a CPU with a part of a batch.

    Args:
        stage: Ready to run; it stays as it is.
        feed: Images.
        regime: Optimizer and the rest.
        compute: Device and precision.
    """
    learner = copy.deepcopy(stage.learner).train()
    step = Step(
        learner,
        method=stage.method,
        optimizer=make_optimizer(trainable(learner), regime.optimizer),
        gradient_clip=regime.training.gradient_clip,
        average=None,
        compute=compute,
    )
    batch = next(iter(feed.training.epoch(0)))
    count = len(batch.labels) if compute.device.type == "cuda" else _TRIAL_IMAGES
    few = replace(batch, images=batch.images[:count], labels=batch.labels[:count], indices=None)
    teacher = _live(stage)  # a part of a batch is not to be remembered
    started = 0.0
    with isolated_generators(compute.device):
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            step(few, teacher(few) if teacher else None)
            step.tally.read()  # waits for the device
    return (time.perf_counter() - started) * len(batch.labels) / len(few.labels)


def _live(stage: Stage) -> LiveTeacher | None:
    """The teacher behind whatever guides a stage."""
    guidance = stage.guidance.live if isinstance(stage.guidance, CachedTeacher) else stage.guidance
    return guidance if isinstance(guidance, LiveTeacher) else None


class _Current:
    """Where a lane is: the stage that is under way."""

    def __init__(self, lane: Lane, feed: Feed, compute: Compute, compilation: Compilation | None) -> None:
        self.lane = lane
        self.run: StageRun | None = None
        self._feed = feed
        self._compute = compute
        self._compilation = compilation
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

    def begin_epoch(self) -> StageRun:
        """The stage under way, ready for the next pass over the images."""
        assert self.run is not None
        self.run.begin_epoch()
        return self.run

    def look(self, number: int) -> None:
        """After a step; where numbers went bad the student leaves, its update being held back from there on."""
        if self.run is not None and self.lane.error is None:
            with self._leaving_on_bad_numbers():
                self.run.look(number)

    def end_epoch(self, seconds: float) -> None:
        """After the last step."""
        if self.run is not None and self.lane.error is None:
            with self._leaving_on_bad_numbers():
                self.run.end_epoch(seconds)

    @contextlib.contextmanager
    def _leaving_on_bad_numbers(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteLossError as error:
            self.lane.error = error
            self._is_over = True

    def close(self) -> None:
        """Put models back to what they were, however it ended."""
        if self.run is not None:
            self.run.release()

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
        following = next(self.lane.stages, None)
        if following is None:
            self._is_over = True
            return
        stage, regime = following
        self.run = StageRun(
            stage, self._feed, regime, compute=self._compute, observer=self.lane.observer, record=self.lane.record
        )


def _models_and_layers(current: Sequence[_Current]) -> dict[nn.Module, set[str]]:
    """Students and teachers of the stages under way, with the layers that are read of each."""
    read: dict[nn.Module, set[str]] = {}
    for one in current:
        assert one.run is not None
        stage = one.run.stage
        read.setdefault(stage.learner.student, set()).update([stage.learner.layer] if stage.learner.layer else [])
        teacher = _live(stage)
        if teacher is not None:
            read.setdefault(teacher.model, set()).update(teacher.layers)
    return read


def _run_epoch(current: list[_Current], feed: Feed, program: Program, epoch: int, seed: int) -> None:
    """One pass over the training images, for all students that take part."""
    started = time.perf_counter()
    runs = [one.begin_epoch() for one in current]
    program.begin_epoch([run.step for run in runs], [run.stage.guidance for run in runs], epoch)
    role, steps_per_epoch = runs[0].stage.role, feed.training.steps_per_epoch
    for number, raw in enumerate(feed.training.raw(epoch)):
        for run in runs:
            run.set_clock(number)
        program(raw, dropout_seed(seed, role, epoch * steps_per_epoch + number))
        for one in current:
            one.look(number)
        if all(one.lane.error for one in current):
            return
    program.end_epoch(feed.training.left_out(epoch))
    shared = time.perf_counter() - started - sum(program.own_seconds)
    for one, own in zip(current, program.own_seconds, strict=True):
        one.end_epoch(own + shared / len(current))
