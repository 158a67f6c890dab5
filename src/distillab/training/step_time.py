"""A step tried on copies, to know how long it takes."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import replace

import torch

from distillab.data.batch import Batch
from distillab.guidance.live import LiveTeacher
from distillab.runtime.capture import CannotCaptureError, Capture
from distillab.runtime.device import Compute, best_seconds
from distillab.runtime.reproducibility import isolated_generators
from distillab.training.config import Regime
from distillab.training.optimizer import make_optimizer
from distillab.training.stage import Feed, Stage
from distillab.training.step import Step, trainable

_TRIAL_IMAGES = 16
_TRIALS = 4  # the quickest counts: what else the machine does makes the others longer
_BUDGET = 0.05  # seconds for each part of a recorded step
_LONGEST_TRIAL_SECONDS = 1.0  # a step that is likely to take longer is tried with a few images only


def seconds_per_step(stage: Stage, feed: Feed, regime: Regime, compute: Compute) -> tuple[float, float]:
    """Wall time of one step, measured on copies of what would learn; of a slow one with a part of a batch.

    Steps that would be recorded are; compiled they would be quicker still.

    Args:
        stage: Ready to run; it stays as it is.
        feed: Images.
        regime: Optimizer and the rest.
        compute: Device and precision.

    Returns:
        That of the learner, and that of the teacher.
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
    teacher = stage.teacher  # the live one: what is tried here is not to be remembered
    batch = next(iter(feed.training.epoch(0)))
    with isolated_generators(compute.device):
        if compute.records:
            with contextlib.suppress(CannotCaptureError):
                return _recorded_seconds(step, teacher, batch, compute.device)
        return _eager_seconds(step, teacher, batch)


def _recorded_seconds(
    step: Step, teacher: LiveTeacher | None, batch: Batch, device: torch.device
) -> tuple[float, float]:
    answer, asking = None, 0.0
    if teacher is not None:
        ask = Capture(lambda: teacher(batch), device=device)
        answer, asking = ask(), best_seconds(ask, device, budget=_BUDGET)
    learn = Capture(lambda: step(batch, answer), device=device, state=step.state)
    return best_seconds(learn, device, budget=_BUDGET), asking


def _eager_seconds(step: Step, teacher: LiveTeacher | None, batch: Batch) -> tuple[float, float]:
    def timed(few: Batch) -> tuple[float, float]:
        started = time.perf_counter()
        answer = teacher(few) if teacher else None
        step.tally.read()  # waits for the device
        answered = time.perf_counter()
        step(few, answer)
        step.tally.read()
        return time.perf_counter() - answered, answered - started

    size = len(batch.labels)
    count = min(size, _TRIAL_IMAGES)
    timed(_some_of(batch, count))  # warms up
    own, teachers = timed(_some_of(batch, count))
    if (own + teachers) * size / count > _LONGEST_TRIAL_SECONDS:
        return own * size / count, teachers * size / count
    return min((timed(_some_of(batch, size)) for _ in range(_TRIALS)), key=sum)


def _some_of(batch: Batch, count: int) -> Batch:
    return replace(batch, images=batch.images[:count], labels=batch.labels[:count], indices=None)
