"""Plans carried out: models and images in, trained models out. Knows no files and no settings of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from distillab.errors import ConfigError, ShapeError, nearest
from distillab.evaluation.evaluate import Evaluation
from distillab.guidance.cache import LogitsMemory, RememberedTeacher
from distillab.guidance.live import Guidance, LiveTeacher
from distillab.methods.base import Method, method_class
from distillab.models.features import default_hint_layer, probe_features, tappable_layers
from distillab.models.weights import weights_sha256
from distillab.runtime.device import Compute
from distillab.runtime.events import Observer, silent
from distillab.runtime.reproducibility import seeded
from distillab.settings import Section
from distillab.stages import Plan, stage_method
from distillab.stages import Stage as PlannedStage
from distillab.training.config import Regime, Role
from distillab.training.step import Learner
from distillab.training.trainer import Best, Feed, Record, Stage, StageReport, fit

BASELINE = "cross_entropy"
"""The method of a model that is trained alone."""


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
    def best(self) -> Best | None:
        """The last stage's epoch with the lowest validation loss."""
        return self.stages[-1].best


@dataclass(frozen=True)
class Workplace:
    """What all stages of a run share.

    Attributes:
        feed: Images.
        seed: Of adapters and dropout.
        compute: Device and precision.
        observer: Is told of progress.
        record: Takes each epoch's numbers, or None.
        memory: Remembers teachers' logits for as long as it is passed on, or None.
    """

    feed: Feed
    seed: int
    compute: Compute
    observer: Observer = silent
    record: Record | None = None
    memory: LogitsMemory | None = None

    def take(self, model: nn.Module) -> nn.Module:
        """Bring a model to the device, in the memory format that is fast there."""
        return model.to(self.compute.device, memory_format=self.compute.memory_format)  # type: ignore[call-overload, no-any-return]

    def run(self, stage: Stage, regime: Regime) -> StageReport:
        """Train one stage."""
        return fit(
            stage,
            self.feed,
            regime,
            seed=self.seed,
            compute=self.compute,
            observer=self.observer,
            record=self.record,
        )


def train_alone(model: nn.Module, regime: Regime, place: Workplace, *, role: Role = "student") -> Trained:
    """Train a model on labels only: a teacher, or the baseline of a comparison.

    Args:
        model: Trained in place.
        regime: How.
        place: Images, seed, device.
        role: Named in the log.
    """
    report = place.run(baseline_stage(model, regime, place, role=role), regime)
    return Trained(model.eval(), (report,), report.seconds)


def baseline_stage(model: nn.Module, regime: Regime, place: Workplace, *, role: Role) -> Stage:
    """The one stage of a model that learns from labels only."""
    kind = method_class(BASELINE)
    return Stage(
        learner=Learner(place.take(model)),
        method=kind(kind.Config()),
        guidance=None,
        epochs=regime.training.epochs,
        title=f"{role} alone",
        role=role,
    )


def carry_out(
    plan: Plan,
    options: Section | Mapping[str, Any],
    *,
    models: Mapping[Role, nn.Module],
    regimes: Mapping[Role, Regime],
    place: Workplace,
) -> dict[Role, Trained]:
    """Carry out a plan.

    Args:
        plan: Its stages, in order.
        options: The methods' own settings.
        models: "teacher" (trained, left as it is), "student" and, where the plan has one, "assistant" (both trained
            in place).
        regimes: One for each role that learns.
        place: Images, seed, device.

    Returns:
        The roles that learnt.

    Raises:
        ConfigError: A role or layer is missing.
        ShapeError: The teacher's classes are others than the data's.
    """
    reports: dict[Role, list[StageReport]] = {}
    learns = [(parameter, parameter.requires_grad) for model in models.values() for parameter in model.parameters()]
    try:
        for stage in planned_stages(plan, options, models=models, regimes=regimes, place=place):
            reports.setdefault(stage.role, []).append(place.run(stage, regimes[stage.role]))
    finally:
        for parameter, before in learns:  # whoever guided was frozen
            parameter.requires_grad_(before)
    return {
        role: Trained(models[role].eval(), tuple(done), sum(report.seconds for report in done))
        for role, done in reports.items()
    }


def planned_stages(
    plan: Plan,
    options: Section | Mapping[str, Any],
    *,
    models: Mapping[Role, nn.Module],
    regimes: Mapping[Role, Regime],
    place: Workplace,
) -> Iterator[Stage]:
    """The stages of a plan, each made ready when it is asked for: after those before it have been run.

    Args and errors are those of `carry_out`.
    """
    values = options.model_dump() if isinstance(options, Section) else dict(options)
    for role in {"teacher", *(stage.student for stage in plan.stages)}:
        if role not in models:
            raise ConfigError(f"plan '{plan.name}' needs a model for the {role}", where=role)
    _check_classes(models["teacher"], place)
    for model in models.values():
        place.take(model)
    learners: tuple[Role, ...] = ("assistant", "student")
    for role in learners:
        planned = plan.stages_of(role)
        if not planned:
            continue
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
    place.take(learner)
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
    if layers or place.memory is None or not place.feed.signature:
        return live
    signature = f"{weights_sha256(teacher)} {place.feed.signature} {place.compute.autocast_dtype}"
    return RememberedTeacher(live, place.memory, signature)


def _check_classes(teacher: nn.Module, place: Workplace) -> None:
    known = getattr(teacher, "num_classes", None)
    if known is not None and known != place.feed.num_classes:
        raise ShapeError(
            f"the teacher knows {known} classes, the data has {place.feed.num_classes}",
            where="teacher",
            hint="take a teacher of the same classes, or train one: give a model name such as cnn8",
        )
