"""What a run would do, without doing it: everything is built and tried on a few images, nothing is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from distillab.config import DistillConfig, TrainConfig, alone, is_weight_source, regime_of, settings_of
from distillab.evaluation.cost import count_macs, count_parameters
from distillab.execution import Job
from distillab.preparation import baseline_stage
from distillab.run import Teachers, build_models, learners_regimes
from distillab.runtime.events import Observer, silent
from distillab.scene import Scene, open_scenes
from distillab.stages import find_plan
from distillab.training.averaging import STATISTICS_IMAGES
from distillab.training.config import Regime, Role
from distillab.training.stage import Stage
from distillab.training.step_time import seconds_per_step

_FORWARD_PART = 1 / 3  # of a training step: the backward pass costs twice as much


def preview(
    config: TrainConfig | DistillConfig, *, allow_code: bool = False, observer: Observer = silent
) -> dict[str, Any]:
    """Build all of a run and say what it would do.

    Args:
        config: Resolved settings.
        allow_code: Weight files may name code that builds their model.
        observer: Is told of assumptions.

    Returns:
        "config", "data" (name, classes, numbers of images), "models" (role, model, parameters, macs), "stages" (title,
        role, method, epochs, steps, seconds, and of those "teacher_seconds" in which the trained teacher is asked) and
        "seconds", an estimate for all stages; ready for JSON.

    Raises:
        DistillabError: Whatever the run itself would stumble over before its first step.
    """
    return preview_together([config], allow_code=allow_code, observer=observer)[0]


def preview_together(
    configs: Sequence[TrainConfig | DistillConfig], *, allow_code: bool = False, observer: Observer = silent
) -> list[dict[str, Any]]:
    """Build runs that can be carried out together, images and trained teachers once, and say what each would do.

    Args:
        configs: Resolved settings; see `run_together`.
        allow_code: Weight files may name code that builds their model.
        observer: Is told of assumptions.

    Returns:
        Of each run what `preview` gives, its time being that which it takes by itself.

    Raises:
        DistillabError: Whatever the runs themselves would stumble over before their first step.
    """
    with open_scenes(configs, observer, allow_code=allow_code) as scenes:
        teachers = Teachers()
        return [_previewed(scene, teachers) for scene in scenes]


def _previewed(scene: Scene, teachers: Teachers) -> dict[str, Any]:
    config = scene.config
    models, stages = _train(scene, config) if isinstance(config, TrainConfig) else _distill(scene, config, teachers)
    described = [_describe(scene, stage, regime, dict(models).get("teacher")) for stage, regime in stages]
    return {
        "config": settings_of(config),
        "data": _data(scene),
        "models": [_model(role, model, scene.feed.image_size) for role, model in models],
        "stages": described,
        "seconds": sum(stage["seconds"] for stage in described),
    }


def _train(scene: Scene, config: TrainConfig) -> tuple[Sequence[tuple[Role, nn.Module]], list[tuple[Stage, Regime]]]:
    model = scene.build(config.model, config.role)
    regime = regime_of(config)
    return [(config.role, model)], [(baseline_stage(model, regime, scene.place, role=config.role), regime)]


def _distill(
    scene: Scene, config: DistillConfig, teachers: Teachers
) -> tuple[Sequence[tuple[Role, nn.Module]], Iterable[tuple[Stage, Regime]]]:
    # One that is still to be trained is built for each run, since the description of a plan freezes it.
    models = build_models(scene, config, teachers if is_weight_source(config.teacher) else None)
    regimes = learners_regimes(config)
    first: list[tuple[Stage, Regime]] = []  # described before the rest, which freezes the teacher
    if not is_weight_source(config.teacher):
        regime = regime_of(alone(config, "teacher"))
        first = [(baseline_stage(models["teacher"], regime, scene.place, role="teacher"), regime)]
    plan = find_plan(config.method, config.stages)
    job = Job(models, regimes, scene.place, plan, config.distill)
    rest = itertools.chain.from_iterable(job.stages(role) for role in job.learners)
    return list(models.items()), itertools.chain(first, rest)


def _describe(scene: Scene, stage: Stage, regime: Regime, trained_teacher: nn.Module | None) -> dict[str, Any]:
    steps = stage.epochs * scene.feed.training.steps_per_epoch
    own, teachers = seconds_per_step(stage, scene.feed, regime, scene.place.compute)
    passes = _images_looked_at(scene, stage) / regime.training.batch_size
    is_shared = stage.teacher is not None and stage.teacher.model is trained_teacher
    return {
        "title": stage.title,
        "role": stage.role,
        "method": stage.method.name,
        "epochs": stage.epochs,
        "steps": steps,
        "seconds": steps * (own + teachers) + passes * own * _FORWARD_PART,
        "teacher_seconds": steps * teachers if is_shared else 0.0,
    }


def _images_looked_at(scene: Scene, stage: Stage) -> int:
    """How many images a stage goes through beside its steps: to validate, and, at the end, to re-estimate statistics
    and to test.
    """
    if stage.learner.stop:
        return 0
    training, held_out = scene.feed.training.num_samples or 0, _held_out(scene)
    at_the_end = min(training, STATISTICS_IMAGES) + held_out + len(scene.dataset.test)
    return stage.epochs * held_out + (at_the_end if stage.final else 0)


def _data(scene: Scene) -> dict[str, Any]:
    size = scene.feed.image_size
    return {
        "name": scene.dataset.name,
        "classes": scene.dataset.num_classes,
        "images": [size, size],
        "train": scene.feed.training.num_samples,
        "validation": _held_out(scene),
        "test": len(scene.dataset.test),
    }


def _held_out(scene: Scene) -> int:
    return sum(len(batch.labels) for batch in scene.feed.validation) if scene.feed.validation else 0


def _model(role: Role, model: nn.Module, image_size: int) -> dict[str, Any]:
    return {
        "role": role,
        "model": getattr(model, "spec", type(model).__name__),
        "parameters": count_parameters(model),
        "macs": count_macs(model, image_size),
    }
