"""The settings of a run: the owners' sections put together, and recipes to fill them. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import Field

from distillab.data.config import AugmentConfig, SplitConfig
from distillab.errors import CheckpointError, ConfigError
from distillab.models.catalog import MODELS
from distillab.settings import Section, validated
from distillab.stages import Plan, Stage, find_plan, plan_options, stage_method
from distillab.training.config import CheckpointConfig, OptimizerConfig, Regime, Role, ScheduleConfig, TrainingConfig


class RoleTraining(Section):
    """Where a teacher or assistant is trained otherwise than the student."""

    epochs: int | None = Field(None, ge=1, description="Its epochs; the student's if not given.")
    learning_rate: float | None = Field(
        None, gt=0.0, le=1e38, allow_inf_nan=False, description="Its learning rate; the student's if not given."
    )
    weight_decay: float | None = Field(
        None, ge=0.0, allow_inf_nan=False, description="Its weight decay; the student's if not given."
    )


class RunConfig(Section):
    """Settings that every run has."""

    data: str = Field(
        "digits", description="A data set's name (`distillab list datasets`), or a path: images or an archive."
    )
    data_dir: Path = Field(Path("data"), description="Where downloads and decoded images are kept.")
    offline: bool = Field(False, description="Never download.")
    image_size: int | None = Field(
        None, ge=8, le=1024, description="Side that images are resized to, in pixels; the model's if not given."
    )
    output: Path | None = Field(None, description="The run folder; made under runs/ if not given.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of initial weights, order and augmentation.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    views: int | None = Field(
        None, ge=1, description="Augment every image in so many ways, over and over; a new one each epoch if not given."
    )
    cache_gib: float = Field(
        4.0,
        ge=0.0,
        le=4096.0,
        description="Disk space for teachers' logits, under the data folder; 0 keeps none there.",
    )
    resident_gib: float | None = Field(
        None, ge=0.0, le=4096.0, description="Stream image sets larger than this; chosen by the device if not given."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; one a core if not given.")
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="Show the run's numbers in these tools as well: tensorboard, wandb, mlflow."
    )
    split: SplitConfig = Field(default_factory=SplitConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)


class TrainConfig(RunConfig):
    """Settings of `distillab train`: one model, alone."""

    role: Role = Field("student", description="Which of the recipe's models: teacher, assistant or student.")
    model: str = Field(
        "",
        description="A name of `distillab list models`, timm:NAME or package.module:function; the role's if not given.",
    )


class DistillConfig(RunConfig):
    """Settings of `distillab distill`: a teacher, a method and a student."""

    method: str = Field("st", description="One of the plans of `distillab list methods`.")
    teacher: str = Field("cnn8", description="A run folder or weight file, or a model name: then it is trained first.")
    teacher_model: str | None = Field(
        None, description="Architecture of a teacher's weight file that does not say its own."
    )
    assistant: str = Field("cnn12", description="Model name of the assistant, for the methods that have one.")
    student: str = Field("cnn16", description="Model name of the student.")
    teacher_training: RoleTraining = Field(default_factory=RoleTraining)
    assistant_training: RoleTraining = Field(default_factory=RoleTraining)
    alone: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings laid over these wherever a model is trained on labels alone: teachers, baselines.",
    )
    distill: dict[str, Any] = Field(
        default_factory=dict, description="The method's own settings (`distillab distill --method NAME --help`)."
    )
    stages: tuple[Stage, ...] = Field((), description="Stages of a plan of one's own, with method 'custom'.")


AnyConfig = TrainConfig | DistillConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)
Values = Mapping[str, Any]

_SHARED = (
    *("data", "data_dir", "offline", "image_size", "seed", "device", "threads", "views"),
    *("split", "augment", "cache_gib", "resident_gib"),
)
_SHARED_TRAINING = ("batch_size", "label_smoothing", "precision", "deterministic", "execution")

OF_THE_PLACE = (
    *("output", "data_dir", "offline", "device", "threads", "cache_gib", "resident_gib"),
    *("checkpoint", "track"),
)
"""Settings of where and how a run is carried out, by which its result does not change."""

_OF_ONE_MODEL = ("role", "model")  # what a `TrainConfig` has and a `DistillConfig` has not


def merged(base: Values, over: Values) -> dict[str, Any]:
    """Values of `base`, those of `over` laid upon them, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def resolve_train(recipe: Values, flags: Values) -> TrainConfig:
    """Settings of `distillab train`: recipe, then flags. What the recipe says of models alone, and of this role,
    takes effect here, so that the result stands for itself.

    Raises:
        ConfigError: A setting is unknown, out of bounds, or without effect.
    """
    values = merged(recipe, flags)
    role = values.get("role", "student")
    whole = {key: value for key, value in values.items() if key not in _OF_ONE_MODEL}
    config = validated(DistillConfig, whole)
    plan = find_plan(config.method, config.stages)
    if config.distill:  # of no use here, but a wrong name is wrong for every verb
        _options(plan, config)
    settings = settings_of(alone(config, role))
    usual = settings.get(role, "") if isinstance(role, str) else ""  # other things than names are refused below
    named = {"role": role, "model": values.get("model") or usual}
    own = {key: value for key, value in settings.items() if key in RunConfig.model_fields}
    mine = {key: value for key, value in flags.items() if key in TrainConfig.model_fields}
    return check(validated(TrainConfig, merged({**own, **named}, mine)), given=flags)


def alone(config: DistillConfig, role: Role) -> DistillConfig:
    """The settings by which a role is trained on labels only."""
    values = merged(settings_of(config), config.alone)
    return for_role(validated(DistillConfig, values), role)


def for_role(config: DistillConfig, role: Role) -> DistillConfig:
    """The settings with a role's own epochs and rates in the place of the student's."""
    if role == "student":
        return config
    own = (config.teacher_training if role == "teacher" else config.assistant_training).model_dump(exclude_none=True)
    epochs = {"epochs": own.pop("epochs")} if "epochs" in own else {}
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=epochs),
            "optimizer": config.optimizer.model_copy(update=own),
        }
    )


def resolve_distill(recipe: Values, flags: Values) -> DistillConfig:
    """Settings of `distillab distill`: recipe, then flags, the method's own settings checked and filled in.

    Imports the methods, hence torch.

    Raises:
        ConfigError: A setting is unknown, out of bounds, or without effect; the recipe is that of a model alone.
        CheckpointError: The teacher looks like a weight file, but is not there.
    """
    one_model = [key for key in _OF_ONE_MODEL if key in recipe]
    if one_model:
        raise ConfigError(
            "the recipe is that of a `distillab train` run: it is about one model, and names no teacher and student",
            where=f"recipe: {', '.join(one_model)}",
            hint="take a recipe for distilling, and give that run as --teacher",
        )
    own = merged(recipe, flags)
    if "method" in flags and "method" in recipe and flags["method"] != recipe["method"]:
        # The recipe's values of another method's settings do not belong to this one.
        known = plan_options(find_plan(own["method"], validated(DistillConfig, own).stages)).model_fields
        kept = {key: value for key, value in recipe.get("distill", {}).items() if key in known}
        own["distill"] = {**kept, **flags.get("distill", {})}
    config = validated(DistillConfig, own)
    plan = find_plan(config.method, config.stages)
    filled = _options(plan, config)
    teacher_alone = alone(config, "teacher")
    if not is_weight_source(config.teacher):
        check(teacher_alone)
    each = config.training.stage_epochs == "each"
    if each and any(stage.share for stage in config.stages):
        raise ConfigError(
            "stages.share has no effect with training.stage_epochs 'each'",
            where="stages",
            hint="leave the shares out, or set training.stage_epochs to shared",
        )
    for learner in plan.learners:
        plan.epochs_of(learner, for_role(config, learner).training.epochs, each=each)
    return check(config.model_copy(update={"method": plan.name, "distill": filled}), given=flags)


def _options(plan: Plan, config: DistillConfig) -> dict[str, Any]:
    """The method's own settings, checked and filled in."""
    options = validated(plan_options(plan), config.distill, where="distill")
    filled = options.model_dump(mode="json", exclude_none=True)
    for stage in plan.stages:
        stage_method(stage, filled)  # its own checks: a setting may not go with what the plan fixes
    return filled


def is_weight_source(teacher: str) -> bool:
    """Whether a teacher is a file or folder rather than a model's name.

    Args:
        teacher: As in `DistillConfig`; a name of `MODELS` is always a name.

    Raises:
        CheckpointError: It looks like a file, but is not there.
    """
    path = Path(teacher)
    if teacher in MODELS:
        return False
    if path.exists():
        return True
    if "/" in teacher or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise CheckpointError(
            "the teacher's weights are not there",
            where=teacher,
            hint="check the path, or train one: distillab train --role teacher",
        )
    return False


def check(config: ConfigT, *, given: Values | None = None) -> ConfigT:
    """Refuse settings that contradict each other or have no effect.

    Args:
        config: Resolved settings.
        given: Those that were typed, where others come from a recipe; None if nothing is known of that.

    Raises:
        ConfigError: Naming the field.
    """
    optimizer, schedule, training = config.optimizer, config.schedule, config.training
    if config.views is not None and not config.augment.is_on:
        raise ConfigError(
            "views has no effect: nothing is augmented", where="views", hint="leave it out, or set augment.crop_padding"
        )
    if optimizer.name != "sgd":
        _refuse_idle("optimizer", ("momentum", "nesterov"), config, given)
    if optimizer.nesterov and optimizer.momentum == 0.0:
        raise ConfigError("Nesterov's form needs momentum", where="optimizer.nesterov", hint="raise optimizer.momentum")
    if schedule.name == "multi_step":
        if not schedule.milestones:
            raise ConfigError("multi_step needs milestones", where="schedule.milestones", hint="for example [10, 15]")
        if list(schedule.milestones) != sorted(set(schedule.milestones)) or schedule.milestones[0] < 1:
            raise ConfigError(
                "milestones are epochs in rising order", where="schedule.milestones", hint="for example [10, 15]"
            )
    else:
        _refuse_idle("schedule", ("milestones", "factor"), config, given)
    if training.early_stop_patience is not None and config.split.validation_fraction == 0.0:
        raise ConfigError(
            "early stopping needs validation images",
            where="training.early_stop_patience",
            hint="raise split.validation_fraction",
        )
    return config


def _refuse_idle(section: str, names: tuple[str, ...], config: RunConfig, given: Values | None) -> None:
    """Refuse settings that have no effect with what the section's name says."""
    values = getattr(config, section)
    idle = [name for name in names if getattr(values, name) is not None]
    if not idle:
        return
    typed = idle if given is None else given.get(section, {})
    inherited = [f"--{section}.{name}=none" for name in idle if name not in typed]
    raise ConfigError(
        f"{section}.{idle[0]} has no effect with {section}.name '{values.name}'",
        where=f"{section}.{idle[0]}",
        hint=f"the recipe gives it; take it away: {' '.join(inherited)}"
        if inherited
        else "leave it out, or change the other",
    )


def regime_of(config: RunConfig) -> Regime:
    """How a model is trained, out of a run's settings."""
    return Regime(training=config.training, optimizer=config.optimizer, schedule=config.schedule)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Plain values of a config, such as TOML and JSON take; what is not set is left out."""
    return config.model_dump(mode="json", exclude_none=True)


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """What runs have in common that are trained together on the same batches, by dotted name."""
    values = {name: getattr(config, name) for name in _SHARED}
    return values | {f"training.{name}": getattr(config.training, name) for name in _SHARED_TRAINING}


def to_toml(config: RunConfig) -> str:
    """The config as a recipe: reading it again gives the same config, in a new run folder."""
    values = anchored(settings_of(config))
    values.pop("output", None)  # a run made again gets a folder of its own
    return tomli_w.dumps(values)


def anchored(values: Values) -> dict[str, Any]:
    """Settings with whole paths of data and teacher, which mean the same in every working folder."""
    from distillab.data.catalog import DATASETS

    found = dict(values)
    for key, names in (("data", DATASETS), ("teacher", MODELS)):
        text = found.get(key)
        if isinstance(text, str) and text not in names:
            with contextlib.suppress(OSError, RuntimeError):  # no path at all; or of a user whose home is not known
                path = Path(text).expanduser()
                found[key] = str(path.absolute()) if path.exists() else text
    return found
