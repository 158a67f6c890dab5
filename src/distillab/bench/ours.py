"""Our own loop, step by step: what `training/trainer.py` does, with a pause after every step."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Sequence
from functools import partial

import numpy as np
from torch import nn

from distillab.bench.config import Case
from distillab.bench.workload import AUGMENT, IMAGE_SIZE, SEED, build, recipe
from distillab.data.batches import TrainingBatches
from distillab.data.dataset import Dataset
from distillab.execution import Job
from distillab.guidance.cache import CacheKey, LogitsCache
from distillab.preparation import Workplace
from distillab.runtime.device import Compute, wait_for
from distillab.runtime.events import silent
from distillab.stages import find_plan
from distillab.training.compilation import Compilation
from distillab.training.config import Regime, Role
from distillab.training.program import Program
from distillab.training.stage import Feed, Stage
from distillab.training.stage_run import StageRun, dropout_seed

_CACHE_BYTES = 2**30


class OurLoop:
    """Our loop; it goes on where it was at each call.

    Args:
        case: What is compared.
        dataset: Images.
        compute: Device, precision, and how steps run.
        cached: The teacher's logits of one view are collected in the first epoch and read in all others, which go
            through the same view.
        batch_size: Images a step.
        steps_per_epoch: The first images of the set, so many batches of them, are an epoch: a short one, since
            collecting logits takes an epoch.
        num_students: So many learn side by side; they are equal, and share batches and teacher.
    """

    def __init__(
        self,
        case: Case,
        dataset: Dataset,
        compute: Compute,
        *,
        cached: bool,
        batch_size: int,
        steps_per_epoch: int,
        num_students: int = 1,
    ) -> None:
        self.warm_up_steps = steps_per_epoch + 1 if cached else 1
        self._compute = compute
        feed = _feed(dataset, compute, cached=cached, batch_size=batch_size, num_images=steps_per_epoch * batch_size)
        cache = LogitsCache(None, limit_bytes=_CACHE_BYTES) if cached else None
        place = Workplace(feed, SEED, compute, cache=cache)
        teacher: dict[Role, nn.Module] = {} if case.teacher is None else {"teacher": build(case.teacher, dataset)}
        jobs = [
            Job(
                models={**teacher, "student": build(case.student, dataset)},
                regimes={"student": recipe(batch_size)},
                place=place,
                plan=None if case.teacher is None else find_plan(case.method),
            )
            for _ in range(num_students)
        ]
        stages = [next(job.stages("student")) for job in jobs]
        self._steps = _steps(stages, feed, compute, teacher=teacher.get("teacher"))

    def seconds(self, steps: int, *, run_in: bool) -> float:
        """Wall time of so many steps, from an idle device to an idle device.

        Args:
            steps: At least 1.
            run_in: See `measure.Loop`.
        """
        if run_in:
            next(self._steps)
        wait_for(self._compute.device)
        started = time.perf_counter()
        for _ in itertools.islice(self._steps, steps):
            pass
        wait_for(self._compute.device)
        return time.perf_counter() - started

    def close(self) -> None:
        """Put the models, and torch's compiler, back to what they were; loops are closed last made first."""
        self._steps.close()


def _feed(dataset: Dataset, compute: Compute, *, cached: bool, batch_size: int, num_images: int) -> Feed:
    return Feed(
        training=TrainingBatches(
            dataset.train.images,
            dataset.train.labels,
            np.arange(num_images),
            batch_size=batch_size,
            num_classes=dataset.num_classes,
            augment=AUGMENT,
            label_smoothing=0.0,
            seed=SEED,
            device=compute.device,
            image_size=IMAGE_SIZE,
            views=1 if cached else None,
        ),
        validation=None,
        test=None,
        sample=None,
        num_classes=dataset.num_classes,
        image_size=IMAGE_SIZE,
        key=CacheKey(
            teacher="",
            data=dataset.sha256,
            images=f"the first {num_images}",
            num_samples=num_images,
            num_classes=dataset.num_classes,
            image_size=IMAGE_SIZE,
            compute=compute,
            augment=AUGMENT,
            seed=SEED,
        ),
    )


def _steps(
    stages: Sequence[tuple[Stage, Regime]], feed: Feed, compute: Compute, teacher: nn.Module | None
) -> Generator[None, None, None]:
    """The loop; it pauses after every step."""
    batches = feed.training
    with contextlib.ExitStack() as stack:
        if compute.execution == "compiled":
            models = [stage.learner.student for stage, _ in stages] + ([] if teacher is None else [teacher])
            stack.enter_context(Compilation(silent)).keep(dict.fromkeys(models, ()))
        runs = [
            StageRun(stage, feed, regime, compute=compute, observer=silent, record=None) for stage, regime in stages
        ]
        seeds = partial(dropout_seed, SEED, stages[0][0].role)
        program = Program(batches, compute, observer=silent)
        stack.callback(program.forget)
        for epoch in itertools.count():
            for run in runs:
                run.begin_epoch(anew=True)
            program.begin_epoch([run.step for run in runs], [stage.guidance for stage, _ in stages], epoch)
            for number, (raw, following) in enumerate(program.with_following(batches.raw(epoch))):
                for run in runs:
                    run.set_clock(number)
                program(raw, seeds(epoch * batches.steps_per_epoch + number), following)
                for run in runs:
                    run.look(number)
                yield
            program.end_epoch(batches.left_out(epoch))
            for run in runs:
                run.end_epoch(0.0)
