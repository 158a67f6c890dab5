"""The only loop: a learner, a method and batches, for some epochs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillab.data.batches import Batch, LoaderBatches, TrainingBatches
from distillab.errors import NonFiniteLossError
from distillab.evaluation.evaluate import Evaluation, evaluate
from distillab.guidance.cache import RememberedTeacher
from distillab.guidance.live import Guidance
from distillab.methods.base import Method
from distillab.runtime.device import Compute
from distillab.runtime.events import EpochEnded, Observer, StageStarted, StepsDone
from distillab.runtime.reproducibility import derived_seed, isolated_generators
from distillab.training.averaging import MovingAverage, has_batchnorm, recalibrate_batchnorm
from distillab.training.config import Regime, Role
from distillab.training.optimizer import make_optimizer, set_learning_rate
from distillab.training.schedule import multiplier
from distillab.training.step import Learner, Step, freeze_beyond, trainable

Record = Callable[[Mapping[str, Any]], None]
"""Takes what an epoch brought: one line of `metrics.jsonl`."""

_SECONDS_BETWEEN_READINGS = 0.5
_TRIAL_IMAGES = 16


@dataclass(frozen=True)
class Feed:
    """The images of a run, in batches.

    Attributes:
        training: What is learnt from.
        validation: What choices are made by; None: none are made.
        test: Read once, after the last step; None: not at all.
        statistics: Training images for BatchNorm, as they are (a user's loader: as it gives them); None: statistics
            stay as training left them.
        num_classes: C.
        image_size: Side in pixels.
        signature: Names all that the content of training batches depends on; "" where that is not known.
    """

    training: TrainingBatches | LoaderBatches
    validation: Iterable[Batch] | None
    test: Iterable[Batch] | None
    statistics: Iterable[Batch] | None
    num_classes: int
    image_size: int
    signature: str


@dataclass
class Best:
    """Weights of the epoch with the lowest validation loss."""

    epoch: int
    validation: Evaluation
    state: dict[str, Tensor]


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Attributes:
        title: Such as "student by st (hint)".
        role: Who learnt.
        method: The method's name.
        epochs: That were trained; fewer than planned where it stopped early.
        steps: Updates.
        terms: Names of the loss terms, as logged.
        seconds: Wall time, validation included.
        history: One record an epoch.
        best: None without validation.
        validation: Of the weights that the stage ends with; None without validation or where it stops at a layer.
        validation_before_recalibration: The same, with BatchNorm statistics as training left them.
    """

    title: str
    role: Role
    method: str
    epochs: int
    steps: int
    terms: tuple[str, ...]
    seconds: float
    history: tuple[Mapping[str, float], ...] = ()
    best: Best | None = None
    validation: Evaluation | None = None
    validation_before_recalibration: Evaluation | None = None


@dataclass
class Stage:
    """One stage, ready to run.

    Attributes:
        learner: What learns; its student is changed in place.
        method: What it minimises.
        guidance: What guides it, or None.
        epochs: How many.
        first_epoch: Epochs that this student has behind it, so that stages go on through the views, not over them.
        final: The student's last stage, after which its BatchNorm statistics are re-estimated.
        title: For people.
        role: Who learns.
    """

    learner: Learner
    method: Method[Any]
    guidance: Guidance | None
    epochs: int
    title: str
    role: Role
    first_epoch: int = 0
    final: bool = True
    history: list[Mapping[str, float]] = field(default_factory=list)


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
        compute: Device and precision.
        observer: Is told of progress.
        record: Takes each epoch's numbers.

    Returns:
        What was done.

    Raises:
        NonFiniteLossError: A loss term or the gradient became NaN or infinite; the weights that learn are those
            before that step (BatchNorm's running statistics have seen its batch).
    """
    started = time.perf_counter()
    student = stage.learner.student
    steps_per_epoch = feed.training.steps_per_epoch
    observer(StageStarted(stage.title, stage.role, stage.method.name, stage.epochs, steps_per_epoch))
    frozen = _freeze_unreached(stage.learner, feed, compute)
    average = _moving_average(stage, regime)
    optimizer = make_optimizer(trainable(stage.learner), regime.optimizer)
    step = Step(
        stage.learner,
        method=stage.method,
        guidance=stage.guidance,
        optimizer=optimizer,
        gradient_clip=regime.training.gradient_clip,
        average=average,
        compute=compute,
    )
    judged = average.model if average else student
    watch = _Watch(stage, feed, compute, patience=regime.training.early_stop_patience)
    try:
        with isolated_generators(compute.device):
            for epoch in range(1, stage.epochs + 1):
                values = _run_epoch(stage, step, feed, regime, epoch, seed, compute, observer)
                values |= watch.look(judged, epoch)
                stage.history.append(values)
                if record is not None:
                    record({"stage": stage.title, "role": stage.role, "epoch": epoch, **values})
                observer(EpochEnded(stage.title, epoch, stage.epochs, values))
                if watch.patience_is_over(epoch):
                    break
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    if average is not None:
        student.load_state_dict(average.model.state_dict())
    if watch.patience is not None and watch.best is not None:
        student.load_state_dict(watch.best.state)
    before, after = _finish(stage, feed, regime, compute)
    return StageReport(
        title=stage.title,
        role=stage.role,
        method=stage.method.name,
        epochs=len(stage.history),
        steps=len(stage.history) * steps_per_epoch,
        terms=step.tally.names,
        seconds=time.perf_counter() - started,
        history=tuple(stage.history),
        best=watch.best,
        validation=after,
        validation_before_recalibration=before,
    )


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
        # A part of a batch is not to be remembered as the whole.
        guidance=stage.guidance.live if isinstance(stage.guidance, RememberedTeacher) else stage.guidance,
        optimizer=make_optimizer(trainable(learner), regime.optimizer),
        gradient_clip=regime.training.gradient_clip,
        average=None,
        compute=compute,
    )
    batch = next(iter(feed.training.epoch(0)))
    count = len(batch.labels) if compute.device.type == "cuda" else _TRIAL_IMAGES
    few = replace(batch, images=batch.images[:count], labels=batch.labels[:count], indices=None)
    progress = torch.zeros((), device=compute.device)
    started = 0.0
    with isolated_generators(compute.device):
        for trial in range(2):  # the first one warms up
            started = time.perf_counter()
            step(few, number=0, step=trial, progress=progress)
            step.tally.read()  # waits for the device
    return (time.perf_counter() - started) * len(batch.labels) / len(few.labels)


def _run_epoch(
    stage: Stage,
    step: Step,
    feed: Feed,
    regime: Regime,
    epoch: int,
    seed: int,
    compute: Compute,
    observer: Observer,
) -> dict[str, float]:
    """One pass over the training images; returns the epoch's means."""
    started = last_reading = time.perf_counter()
    steps_per_epoch = feed.training.steps_per_epoch
    total = stage.epochs * steps_per_epoch
    progress = torch.zeros((), device=compute.device)
    step.tally.reset()
    step.learner.train()
    rate = 0.0
    for number, batch in enumerate(feed.training.epoch(stage.first_epoch + epoch - 1)):
        done = (epoch - 1) * steps_per_epoch + number
        # Dropout draws from a generator that is set before each step, so that a step can be replayed alone.
        torch.manual_seed(derived_seed(seed, "dropout", stage.role, stage.first_epoch * steps_per_epoch + done))
        rate = regime.optimizer.learning_rate * multiplier(regime.schedule, done, total, steps_per_epoch)
        set_learning_rate(step.optimizer, rate)
        progress.fill_(done / total)
        step(batch, number=number, step=done, progress=progress)
        now = time.perf_counter()
        if now - last_reading > _SECONDS_BETWEEN_READINGS:
            last_reading = now
            _stop_on_bad_numbers(stage, step, steps_per_epoch)
            values = step.tally.read()
            observer(StepsDone(done + 1, total, values.get("loss"), values.get("train_top1")))
    _stop_on_bad_numbers(stage, step, steps_per_epoch)
    return {**step.tally.read(), "learning_rate": rate, "seconds": time.perf_counter() - started}


def _stop_on_bad_numbers(stage: Stage, step: Step, steps_per_epoch: int) -> None:
    bad = step.tally.first_bad()
    if bad is not None:
        what, number = bad
        raise NonFiniteLossError(
            f"{what} became NaN or infinite",
            where=f"{stage.title}, epoch {number // steps_per_epoch + 1}, step {number + 1}",
            hint="lower optimizer.learning_rate, or set training.gradient_clip, say 1.0",
        )


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
    before = evaluate(student, feed.validation, autocast_dtype=compute.autocast_dtype) if feed.validation else None
    if not stage.final or not recalibrated(student, feed, regime, compute):
        return None, before
    return before, evaluate(
        student, feed.validation, autocast_dtype=compute.autocast_dtype
    ) if feed.validation else None


def recalibrated(model: nn.Module, feed: Feed, regime: Regime, compute: Compute) -> bool:
    """Re-estimate the BatchNorm statistics of a trained model, if the regime says so and it has any."""
    if not regime.training.recalibrate_batchnorm or feed.statistics is None or not has_batchnorm(model):
        return False
    recalibrate_batchnorm(model, (batch.images for batch in feed.statistics), compute)
    return True


class _Watch:
    """Looks at the validation images after each epoch: keeps the best weights, and knows when to stop."""

    def __init__(self, stage: Stage, feed: Feed, compute: Compute, *, patience: int | None) -> None:
        self.feed = feed
        self.compute = compute
        self.idle = feed.validation is None or stage.learner.stop
        self.patience = None if self.idle else patience
        self.best: Best | None = None

    def look(self, model: nn.Module, epoch: int) -> dict[str, float]:
        if self.idle or self.feed.validation is None:
            return {}
        found = evaluate(model, self.feed.validation, autocast_dtype=self.compute.autocast_dtype)
        if self.best is None or found.nll < self.best.validation.nll:
            self.best = Best(epoch, found, copy.deepcopy(model.state_dict()))
        return {"validation_top1": found.top1, "validation_loss": found.nll}

    def patience_is_over(self, epoch: int) -> bool:
        return self.patience is not None and self.best is not None and epoch - self.best.epoch >= self.patience
