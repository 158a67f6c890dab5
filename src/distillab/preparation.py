"""Stages made ready to run: a plan and models in; learners, adapters and guidance out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from distillab.errors import ConfigError, nearest
from distillab.guidance.base import Guidance
from distillab.guidance.cache import LogitsCache, teacher_sha256
from distillab.guidance.cached import with_cache
from distillab.guidance.live import LiveTeacher
from distillab.methods.base import Method, method_class
from distillab.models.classifier import Classifier
from distillab.models.features import default_hint_layer, probe_features, tappable_layers
from distillab.runtime.device import Compute
from distillab.runtime.events import Observer, silent
from distillab.runtime.reproducibility import seeded
from distillab.settings import Section
from distillab.stages import Plan, stage_method
from distillab.stages import Stage as PlannedStage
from distillab.training.config import Regime, Role
from distillab.training.keeper import Keeper
from distillab.training.stage import Feed, Record, Stage
from distillab.training.step import Learner

BASELINE = "cross_entropy"
"""The method of a model that is trained alone."""


@dataclass(frozen=True)
class Workplace:
    """What all stages of a run share.

    Attributes:
        feed: Images.
        seed: Of adapters and dropout.
        compute: Device and precision.
        observer: Is told of progress.
        record: Takes each epoch's numbers, or None.
        cache: Keeps teachers' logits, or None.
        keeper: Saves the run now and then, or None.
    """

    feed: Feed
    seed: int
    compute: Compute
    observer: Observer = silent
    record: Record | None = None
    cache: LogitsCache | None = None
    keeper: Keeper | None = None


def baseline_stage(model: nn.Module, regime: Regime, place: Workplace, *, role: Role) -> Stage:
    """The one stage of a model that learns from labels only."""
    kind = method_class(BASELINE)
    return Stage(
        learner=Learner(place.compute.take(model)),
        method=kind(kind.Config()),
        guidance=None,
        epochs=regime.training.epochs,
        title=f"{role} alone",
        role=role,
    )


def planned_stages(
    plan: Plan,
    options: Section | Mapping[str, Any],
    role: Role,
    *,
    models: Mapping[Role, nn.Module],
    regimes: Mapping[Role, Regime],
    place: Workplace,
) -> Iterator[Stage]:
    """The stages of a plan in which `role` learns, each made ready when it is asked for.

    Args:
        plan: Its stages, in order.
        options: The methods' own settings.
        role: Who learns.
        models: See `Job`.
        regimes: See `Job`.
        place: Images, seed, device.

    Raises:
        ConfigError: A layer is missing, or the last stage stops at one.
    """
    values = options.model_dump() if isinstance(options, Section) else dict(options)
    planned = plan.stages_of(role)
    training = regimes[role].training
    epochs = plan.epochs_of(role, training.epochs, each=training.stage_epochs == "each")
    for number, stage in enumerate(planned):
        yield _prepare(
            plan,
            stage,
            stage_method(stage, values),
            teacher=models[stage.teacher],
            student=models[role],
            epochs=epochs[number],
            first_epoch=sum(epochs[:number]),
            final=number == len(planned) - 1,
            place=place,
        )


def check_layers(plan: Plan, options: Mapping[str, Any], models: Mapping[Role, nn.Module]) -> None:
    """Refuse layers that a model does not have, before anything is trained.

    Args:
        plan: Its methods may read layers.
        options: The methods' own settings, which may name them.
        models: All roles of the plan.

    Raises:
        ConfigError: Naming the nearest right layer.
    """
    for stage in plan.stages:
        roles = (stage.teacher, stage.student)
        for role, layer in zip(roles, stage_method(stage, options).layers() or (), strict=False):
            known = tappable_layers(models[role])
            if layer is not None and layer not in known:
                raise ConfigError(f"the {role} has no layer '{layer}'", where="distill", hint=nearest(layer, known))


def _prepare(
    plan: Plan,
    stage: PlannedStage,
    method: Method[Any],
    *,
    teacher: nn.Module,
    student: nn.Module,
    epochs: int,
    first_epoch: int,
    final: bool,
    place: Workplace,
) -> Stage:
    """Turn one stage of a plan into models, adapters and guidance that can run."""
    size = place.feed.image_size
    stop = method.stops_at_layer()
    if stop and final:
        raise ConfigError(
            f"'{method.name}' ends at a layer, so the {stage.student}'s last stage cannot be it",
            where="stages",
            hint="add a stage after it, such as soft_target",
        )
    for model in (teacher, student):
        place.compute.take(model)
    teacher_layers: tuple[str, ...] = ()
    student_layer: str | None = None
    adapter: nn.Module | None = None
    wanted = method.layers()
    if wanted is not None:
        teacher_layer = wanted[0] or default_hint_layer(teacher, size)
        student_layer = wanted[1] or default_hint_layer(student, size)
        teacher_layers = (teacher_layer,)
        with seeded(place.seed, "adapter", stage.student, first_epoch):
            adapter = method.adapter(
                probe_features(student, [student_layer], size)[student_layer],
                probe_features(teacher, [teacher_layer], size)[teacher_layer],
            )
    learner = Learner(student, layer=student_layer, adapter=adapter, stop=stop)
    place.compute.take(learner)
    several = len(plan.stages_of(stage.student)) > 1
    title = f"{stage.student} by {plan.name}" + (f" ({method.name.replace('_', ' ')})" if several else "")
    return Stage(
        learner=learner,
        method=method,
        guidance=_guidance(method, teacher, teacher_layers, stop, place),
        epochs=epochs,
        title=title,
        role=stage.student,
        first_epoch=first_epoch,
        final=final,
    )


def _guidance(
    method: Method[Any], teacher: nn.Module, layers: tuple[str, ...], stop: bool, place: Workplace
) -> Guidance | None:
    if not method.needs_teacher:
        return None
    live = LiveTeacher(teacher, layers=layers, stop=stop, compute=place.compute)
    # Only a model that says how it was built can be told from another.
    if layers or place.cache is None or place.feed.key is None or not isinstance(teacher, Classifier):
        return live
    return with_cache(live, place.cache, replace(place.feed.key, teacher=teacher_sha256(teacher)))
