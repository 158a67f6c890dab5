"""A stage that is under way: its optimizer, its clock, what validation says of it, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from distillab.data.batches import TrainingBatches
from distillab.errors import CheckpointError, NonFiniteLossError
from distillab.evaluation.evaluate import Evaluation, Evaluator, evaluate
from distillab.runtime.device import Compute
from distillab.runtime.events import EpochEnded, Observer, StageEnded, StageStarted, StepsDone
from distillab.runtime.reproducibility import derived_seed
from distillab.training.averaging import MovingAverage, recalibrated, recalibrated_inside
from distillab.training.config import Regime, Role
from distillab.training.guards import LearnerGuard, TeacherGuard, describe_batch, term_shares
from distillab.training.optimizer import make_optimizer
from distillab.training.schedule import multiplier
from distillab.training.stage import Best, Feed, Record, Stage, StageReport, lines
from distillab.training.state import check_fits, load_optimizer_state, load_tensors, optimizer_state, tensors_of
from distillab.training.step import Learner, Step, freeze_beyond, trainable
from distillab.training.watch import Watch

_SECONDS_BETWEEN_READINGS = 0.5


class StageRun:
    """One stage under way.

    Attributes:
        stage: What is trained.
        step: What it does with a batch.
        epochs_done: How many.
        seconds: Wall time so far, of its own and its part of what it shares with others.

    Args:
        stage: What is trained, and for how long.
        feed: Images.
        regime: Optimizer, schedule and the rest.
        compute: Device and precision.
        observer: Is told of progress.
        record: Takes each epoch's numbers.
    """

    def __init__(
        self,
        stage: Stage,
        feed: Feed,
        regime: Regime,
        *,
        compute: Compute,
        observer: Observer,
        record: Record | None,
    ) -> None:
        self.stage = stage
        self.epochs_done = 0
        self.seconds = 0.0
        self._feed = feed
        self._regime = regime
        self._compute = compute
        self._observer = observer
        self._record = record
        self._steps_per_epoch = feed.training.steps_per_epoch
        observer(StageStarted(stage.title, stage.role, stage.method.name, stage.epochs, self._steps_per_epoch))
        self._frozen = _freeze_unreached(stage.learner, feed, compute)
        self._guards: list[TeacherGuard | LearnerGuard] = [LearnerGuard(stage.learner, title=stage.title)]
        if stage.teacher is not None:
            self._guards.append(TeacherGuard(stage.teacher.model, title=stage.title))
        self._average = _moving_average(stage, regime)
        self.step = Step(
            stage.learner,
            method=stage.method,
            optimizer=make_optimizer(trainable(stage.learner), regime.optimizer),
            gradient_clip=regime.training.gradient_clip,
            average=self._average,
            compute=compute,
        )
        evaluator = None
        if feed.validation is not None and not stage.learner.stop:
            evaluator = Evaluator(
                self._judged,
                feed.validation,
                autocast_dtype=compute.autocast_dtype,
                captured=compute.records,
                observer=observer,
            )
        self._watch = Watch(
            evaluator,
            self._judged,
            partial(recalibrated_inside, self._judged, feed.training, regime, compute),
            patience=regime.training.early_stop_patience,
        )
        self._history: list[Mapping[str, float]] = []

    @property
    def is_over(self) -> bool:
        """All epochs are done, or validation has said that it is enough."""
        return self.epochs_done == self.stage.epochs or self._watch.patience_is_over(self.epochs_done)

    def begin_epoch(self, *, anew: bool) -> None:
        """Make ready for the next pass over the training images.

        Args:
            anew: From its beginning; otherwise go on in the middle of one.
        """
        self._last_reading = time.perf_counter()
        if anew:
            self.step.tally.reset()
        self.step.learner.train()

    def set_clock(self, number: int) -> None:
        """Say which step of the epoch comes next."""
        done = self._done(number)
        total = self.stage.epochs * self._steps_per_epoch
        schedule = multiplier(self._regime.schedule, done, total, self._steps_per_epoch)
        self._rate = self._regime.optimizer.learning_rate * schedule
        self.step.set_clock(done, total, self._rate)

    def look(self, number: int, *, now: bool = False) -> None:
        """After a step: now and then, read the losses and stop on bad numbers.

        Args:
            number: Of the step within its epoch.
            now: In any case.

        Raises:
            NonFiniteLossError: A loss term or the gradient became NaN or infinite; the weights that learn are those
                before that step (BatchNorm's running statistics have seen its batch).
        """
        since = time.perf_counter()
        if not now and since - self._last_reading < _SECONDS_BETWEEN_READINGS:
            return
        self._last_reading = since
        self._stop_on_bad_numbers()
        self.tell(number + 1)

    def tell(self, number: int) -> None:
        """Say how far the stage has come; this waits for the device.

        Args:
            number: Steps of the epoch that are done.
        """
        values = self.step.tally.read()
        total = self.stage.epochs * self._steps_per_epoch
        done = self._done(number)
        self._observer(StepsDone(self.stage.title, done, total, values.get("loss"), values.get("train_top1")))

    def end_epoch(self, seconds: float) -> None:
        """Validate, and report the epoch.

        Args:
            seconds: Wall time of its steps.

        Raises:
            NonFiniteLossError: As in `look`.
        """
        started = time.perf_counter()
        self._stop_on_bad_numbers()
        self.epochs_done += 1
        losses = self.step.tally.read()
        values = {**losses, **term_shares(losses), "learning_rate": self._rate, "seconds": seconds}
        values |= self._watch.look(self.epochs_done)
        self._history.append(values)
        if self._record is not None:
            *_, latest = lines(self.stage.title, self.stage.role, self._history)
            self._record(latest)
        self._observer(EpochEnded(self.stage.title, self.epochs_done, self.stage.epochs, values))
        self.seconds += seconds + time.perf_counter() - started

    def finish(self) -> StageReport:
        """Give the student the weights that the stage ends with, and say what was done.

        Raises:
            GuardError: The teacher has changed, or the student has not.
        """
        started = time.perf_counter()
        for guard in self._guards:
            guard.check()
        self.release()
        student = self.stage.learner.student
        last = None
        if self._average is not None:
            if self.stage.final:
                last = {name: tensor.clone() for name, tensor in student.state_dict().items()}
            student.load_state_dict(self._average.model.state_dict())
        if self._watch.patience is not None and self._watch.best is not None:
            student.load_state_dict(self._watch.best.state)
        before, after = _finish(self.stage, self._feed, self._regime, self._compute)
        self._observer(StageEnded(self.stage.title, self.epochs_done))
        return StageReport(
            title=self.stage.title,
            role=self.stage.role,
            method=self.stage.method.name,
            epochs=self.epochs_done,
            steps=self.epochs_done * self._steps_per_epoch,
            terms=self.step.tally.names,
            seconds=self.seconds + time.perf_counter() - started,
            history=tuple(self._history),
            best=self._watch.best if self.stage.final else None,
            last=last,
            validation=after,
            validation_before_recalibration=before,
        )

    def saved(self) -> dict[str, Any]:
        """What must be known to go on, for a checkpoint."""
        return {
            "title": self.stage.title,
            "epochs": self.epochs_done,
            "seconds": self.seconds,
            "history": [dict(values) for values in self._history],
            "learner": tensors_of(self.stage.learner),
            "optimizer": optimizer_state(self.step.optimizer),
            "ema": self._average.saved() if self._average else None,
            "tally": self.step.tally.saved(),
            "best": self._watch.best.saved() if self._watch.best else None,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on where another process was; before the first step, so that a recorded step finds what it goes on with.

        Args:
            saved: Of the same stage.

        Raises:
            CheckpointError: It is of another stage or model.
        """
        if saved["title"] != self.stage.title or (saved["ema"] is None) != (self._average is None):
            raise CheckpointError(
                f"the checkpoint is of another run: its stage is '{saved['title']}', not '{self.stage.title}'",
                where="checkpoint",
                hint="use the settings that the run was started with",
            )
        load_tensors(tensors_of(self.stage.learner), saved["learner"], what=self.stage.title)
        if self._average is not None:
            load_tensors(self._average.saved(), saved["ema"], what=f"{self.stage.title}, moving average")
        load_optimizer_state(self.step.optimizer, saved["optimizer"])
        self.step.tally.load(saved["tally"])
        self.epochs_done = saved["epochs"]
        self.seconds = saved["seconds"]
        self._history = list(saved["history"])
        if self._record is not None:
            for line in lines(self.stage.title, self.stage.role, self._history):
                self._record(line)
        if saved["best"] is not None:
            check_fits(self._judged.state_dict(), saved["best"]["state"], what=f"{self.stage.title}, best weights")
            self._watch.best = Best.load(saved["best"])

    def release(self) -> None:
        """Thaw what the stage froze."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    @property
    def _judged(self) -> nn.Module:
        return self._average.model if self._average else self.stage.learner.student

    def _done(self, number: int) -> int:
        return self.epochs_done * self._steps_per_epoch + number

    def _stop_on_bad_numbers(self) -> None:
        bad = self.step.tally.first_bad()
        if bad is not None:
            what, number = bad
            epoch, step = divmod(number, self._steps_per_epoch)
            where = f"{self.stage.title}, epoch {epoch + 1}, step {number + 1}"
            source = self._feed.training
            if isinstance(source, TrainingBatches):  # a loader cannot be asked for one batch
                where += f", {describe_batch(source.replay(self.stage.first_epoch + epoch, step))}"
            raise NonFiniteLossError(
                f"{what} became NaN or infinite",
                where=where,
                hint="lower optimizer.learning_rate, or set training.gradient_clip, say 1.0",
            )


def dropout_seed(seed: int, role: Role, step: int) -> int:
    """Seed of a step's dropout, so that the step can be replayed alone.

    Args:
        seed: Of the run.
        role: Who learns.
        step: Number of the step over all stages of whoever learns, from 0.
    """
    return derived_seed(seed, "dropout", role, step)


def _moving_average(stage: Stage, regime: Regime) -> MovingAverage | None:
    decay = regime.training.ema_decay
    # A stage that stops at a layer prepares weights for the next one, which starts its own average.
    return None if decay is None or stage.learner.stop else MovingAverage(stage.learner.student, decay)


def _freeze_unreached(learner: Learner, feed: Feed, compute: Compute) -> list[nn.Parameter]:
    """Freeze what a stage that stops early does not reach: its optimizer must not move it, not even by decay."""
    if not learner.stop:
        return []
    learner.eval()  # no statistics move, no dropout is drawn
    images = torch.zeros(2, 3, feed.image_size, feed.image_size, device=compute.device)
    return list(freeze_beyond(learner, images))


def _finish(stage: Stage, feed: Feed, regime: Regime, compute: Compute) -> tuple[Evaluation | None, Evaluation | None]:
    """Re-estimate BatchNorm statistics; returns the validation before and after."""
    if stage.learner.stop:
        return None, None
    student = stage.learner.student

    def validation() -> Evaluation | None:
        return evaluate(student, feed.validation, autocast_dtype=compute.autocast_dtype) if feed.validation else None

    before = validation()
    if not stage.final or not recalibrated(student, feed.training, regime, compute):
        return None, before
    return before, validation()
