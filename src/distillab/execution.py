"""Plans carried out: models and images in, trained models out. Knows no files and no settings of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from distillab.checks import check_classes
from distillab.errors import ConfigError, NonFiniteLossError
from distillab.evaluation.evaluate import Evaluation
from distillab.preparation import Workplace, baseline_stage, planned_stages
from distillab.settings import Section
from distillab.stages import Plan
from distillab.training.config import Regime, Role
from distillab.training.lanes import Lane
from distillab.training.stage import Best, Stage, StageReport
from distillab.training.trainer import fit_together


@dataclass(frozen=True)
class Trained:
    """A model that has gone through its stages.

    Attributes:
        model: With the last step's weights (their moving average if the regime keeps one), in evaluation mode.
        stages: What was done.
        seconds: Wall time of all of it.
    """

    model: nn.Module
    stages: tuple[StageReport, ...]
    seconds: float

    @property
    def validation(self) -> Evaluation | None:
        """Of the resulting weights."""
        return self.stages[-1].validation

    @property
    def last(self) -> Mapping[str, Tensor] | None:
        """The weights of the last step, where their moving average is the result."""
        return self.stages[-1].last

    @property
    def best(self) -> Best | None:
        """The last stage's epoch with the lowest validation loss."""
        return self.stages[-1].best


@dataclass(frozen=True)
class Job:
    """One student's training: by a plan, or alone.

    Attributes:
        models: "teacher" (trained, left as it is), "student" and, where the plan has one, "assistant" (both trained
            in place); of a job without a plan the one role that learns.
        regimes: How each role that learns is trained.
        place: Images, seed, device; jobs that are carried out together have these in common, but each its observer.
        plan: None: the model learns from labels only.
        options: The methods' own settings.
    """

    models: Mapping[Role, nn.Module]
    regimes: Mapping[Role, Regime]
    place: Workplace
    plan: Plan | None = None
    options: Section | Mapping[str, Any] = field(default_factory=dict)

    @property
    def learners(self) -> tuple[Role, ...]:
        """Who learns, in order."""
        return tuple(self.models) if self.plan is None else self.plan.learners

    def stages(self, role: Role) -> Iterator[tuple[Stage, Regime]]:
        """The stages of one role, each made ready when it is asked for: after those before it have been run."""
        regime = self.regimes[role]
        if self.plan is None:
            yield baseline_stage(self.models[role], regime, self.place, role=role), regime
            return
        for stage in planned_stages(
            self.plan, self.options, role, models=self.models, regimes=self.regimes, place=self.place
        ):
            yield stage, regime


def train_alone(model: nn.Module, regime: Regime, place: Workplace, *, role: Role = "student") -> Trained:
    """Train a model on labels only: a teacher, or the baseline of a comparison.

    Args:
        model: Trained in place.
        regime: How.
        place: Images, seed, device.
        role: Named in the log.

    Raises:
        NonFiniteLossError: A loss term or the gradient became NaN or infinite.
    """
    return carry_out(Job({role: model}, {role: regime}, place))[role]


def carry_out(job: Job) -> dict[Role, Trained]:
    """Carry out one job.

    Returns:
        The roles that learnt.

    Raises:
        ConfigError: A role or layer is missing.
        ShapeError: A model's classes are others than the data's.
        NonFiniteLossError: A loss term or the gradient became NaN or infinite.
    """
    outcome = carry_out_together([job])[0]
    if isinstance(outcome, NonFiniteLossError):
        raise outcome
    return outcome


def carry_out_together(jobs: Sequence[Job]) -> list[dict[Role, Trained] | NonFiniteLossError]:
    """Carry out some jobs on the same batches: see `fit_together`. First all assistants learn, then all students.

    Returns:
        Of each job the roles that learnt, or why it ended before its time.

    Raises:
        ConfigError: A role or layer is missing.
        ShapeError: A model's classes are others than the data's.
    """
    parameters = [p for job in jobs for model in job.models.values() for p in model.parameters()]
    learns = [(parameter, parameter.requires_grad) for parameter in parameters]
    outcomes: list[dict[Role, Trained] | NonFiniteLossError] = [{} for _ in jobs]
    for job in jobs:
        _check_models(job)
    try:
        for role in get_args(Role):
            taking_part = [
                (number, Lane(job.models[role], job.stages(role), job.place.observer, job.place.record))
                for number, job in enumerate(jobs)
                if role in job.learners and not isinstance(outcomes[number], NonFiniteLossError)
            ]
            if not taking_part:
                continue
            _train_together([lane for _, lane in taking_part], jobs[0].place, role)
            for number, lane in taking_part:
                outcome = outcomes[number]
                if lane.error is not None:
                    outcomes[number] = lane.error
                elif not isinstance(outcome, NonFiniteLossError):
                    seconds = sum(report.seconds for report in lane.reports)
                    outcome[role] = Trained(jobs[number].models[role].eval(), tuple(lane.reports), seconds)
    finally:
        for parameter, before in learns:  # whoever guided was frozen
            parameter.requires_grad_(before)
    return outcomes


def _train_together(lanes: Sequence[Lane], place: Workplace, role: Role) -> None:
    with place.keeper.phase(role) if place.keeper else nullcontext() as phase:
        fit_together(lanes, place.feed, seed=place.seed, compute=place.compute, phase=phase)


def _check_models(job: Job) -> None:
    """See that all roles of a plan are there, and that all models know the data's classes."""
    if job.plan is not None:
        for role in ("teacher", *job.plan.learners):
            if role not in job.models:
                raise ConfigError(f"plan '{job.plan.name}' needs a model for the {role}", where=role)
    feed = job.place.feed
    check_classes(job.models, feed.num_classes, torch.zeros(1, 3, feed.image_size, feed.image_size))
