"""From settings to results: data, models, stages, evaluation, and the run folder that holds what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distillab import __version__
from distillab.config import DistillConfig, TrainConfig, alone, for_role, is_weight_source, regime_of
from distillab.data.batches import on_device
from distillab.evaluation.cost import count_macs, count_parameters, latency
from distillab.evaluation.evaluate import collect_logits, evaluate_logits
from distillab.evaluation.metrics import noise_in_words
from distillab.execution import Trained, carry_out, check_layers, train_alone
from distillab.guidance.cache import LogitsMemory
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model, save_weights, weights_sha256
from distillab.outside_code import names_code
from distillab.runtime.events import Note, Observer, silent
from distillab.scene import Scene, check_fits, open_scene
from distillab.stages import find_plan
from distillab.training.config import Regime, Role
from distillab.training.trainer import recalibrated

RESULT_FORMAT = 1


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        run_dir: Its folder; None if it was not to be kept.
        summary: The content of `result.json`.
        models: Role -> model, those that were trained and the teacher that was used.
    """

    run_dir: Path | None
    summary: dict[str, Any]
    models: Mapping[Role, nn.Module]


def run_train(
    config: TrainConfig,
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    save_run: bool = True,
) -> RunResult:
    """Train one model alone.

    Args:
        config: Resolved settings.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Weight files may name code that builds their model.
        save_run: Keep a run folder.

    Raises:
        DistillabError: Of the kinds in `errors.py`; what was written until then is whole.
    """
    label = f"{config.role}-{_file_name(config.model)}"
    with open_scene(config, observer, allow_code=allow_code) as scene:
        model = scene.build(config.model, config.role)
        scene.begin(label, command, save_run=save_run)
        trained = train_alone(model, regime_of(config), scene.place, role=config.role)
        summary = {
            "format_version": RESULT_FORMAT,
            "kind": "train",
            "role": config.role,
            "model": config.model,
            **_outcome(scene, trained, config.role),
            **_training_record([trained]),
        }
        return _conclude(scene, summary, {config.role: trained.model})


def run_distill(
    config: DistillConfig,
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    save_run: bool = True,
    memory: LogitsMemory | None = None,
) -> RunResult:
    """Distil a teacher into a student, by any plan.

    Args:
        config: Resolved settings.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Weight files may name code that builds their model.
        save_run: Keep a run folder.
        memory: Remembers teachers' logits from one run to the next.

    Raises:
        DistillabError: Of the kinds in `errors.py`; what was written until then is whole.
    """
    plan = find_plan(config.method, config.stages)
    label = f"{plan.name}-{_file_name(config.student)}"
    loaded = is_weight_source(config.teacher)  # before images are read or downloaded
    with open_scene(config, observer, allow_code=allow_code, memory=memory) as scene:
        models = build_models(scene, config)
        scene.begin(label, command, save_run=save_run, loaded_teacher=models["teacher"] if loaded else None)
        taught = None if loaded else _train_teacher(scene, config, models["teacher"])
        trained = carry_out(plan, config.distill, models=models, regimes=learners_regimes(config), place=scene.place)
        return _conclude(scene, _distill_summary(scene, config, models, trained, taught), models)


def build_models(scene: Scene, config: DistillConfig) -> dict[Role, nn.Module]:
    """The models of a plan: new ones for those that learn, and the teacher, loaded or to be trained.

    Raises:
        CheckpointError: The teacher cannot be loaded, or has another number of classes.
        ShapeError: It takes other images, or knows the classes in another order.
        ConfigError: A method reads a layer that a model does not have.
    """
    plan = find_plan(config.method, config.stages)
    models: dict[Role, nn.Module] = {}
    if plan.uses_assistant:
        models["assistant"] = scene.build(config.assistant, "assistant")
    models["student"] = scene.build(config.student, "student")
    if is_weight_source(config.teacher):
        models["teacher"] = _load_teacher(scene, config)
    else:
        models["teacher"] = scene.build(config.teacher, "teacher")
    check_layers(plan, config.distill, models)
    return models


def learners_regimes(config: DistillConfig) -> dict[Role, Regime]:
    """How each role of a plan is trained."""
    return {"student": regime_of(config), "assistant": regime_of(for_role(config, "assistant"))}


def _distill_summary(
    scene: Scene,
    config: DistillConfig,
    models: Mapping[Role, nn.Module],
    trained: Mapping[Role, Trained],
    taught: Trained | None,
) -> dict[str, Any]:
    """Evaluate all roles, teacher first, since the others are compared with it."""
    scene.test_logits = _teacher_test_logits(scene, models["teacher"])
    labels = on_device(scene.dataset.test.labels, scene.test_logits.device)
    roles: dict[str, Any] = {
        "teacher": {
            "model": getattr(models["teacher"], "spec", type(models["teacher"]).__name__),
            "source": "trained in this run" if taught else config.teacher,
            "test": evaluate_logits(scene.test_logits, labels).as_dict(),
            "cost": _cost(models["teacher"], scene.feed.image_size),
            **(_training_record([taught]) if taught else {}),
        }
    }
    if "assistant" in trained:
        roles["assistant"] = {"model": config.assistant, **_outcome(scene, trained["assistant"], "assistant")}
    return {
        "format_version": RESULT_FORMAT,
        "kind": "distill",
        "role": "student",
        "method": config.method,
        "model": config.student,
        **_outcome(scene, trained["student"], "student"),
        **_training_record(list(trained.values())),
        **roles,
    }


def _teacher_test_logits(scene: Scene, teacher: nn.Module) -> Tensor:
    """Logits [N, C] of the test images, remembered where runs share a memory."""
    test, compute = scene.feed.test, scene.place.compute
    assert test is not None

    def ask() -> Tensor:
        return collect_logits(teacher, test, autocast_dtype=compute.autocast_dtype)[0]

    if scene.place.memory is None:
        return ask()
    key = ("test", weights_sha256(teacher), scene.feed.signature, compute.autocast_dtype)
    return scene.place.memory.recall(key, ask)


def _train_teacher(scene: Scene, config: DistillConfig, model: nn.Module) -> Trained:
    """Train the teacher where a model name stands in its place."""
    scene.place.observer(Note(f"no weights are given for the teacher: a {config.teacher} is trained first"))
    trained = train_alone(model, regime_of(alone(config, "teacher")), scene.place, role="teacher")
    _save(scene, "teacher", trained.model)
    return trained


def _load_teacher(scene: Scene, config: DistillConfig) -> Classifier:
    teacher = load_model(
        config.teacher,
        spec=config.teacher_model,
        num_classes=scene.dataset.num_classes,
        image_size=scene.feed.image_size,
        allow_code=scene.allow_code or names_code(config.teacher_model or ""),
        observer=scene.place.observer,
    )
    where = f"teacher: {config.teacher}"
    check_fits(teacher, scene.dataset, scene.feed.image_size, where=where, observer=scene.place.observer)
    return teacher


def _outcome(scene: Scene, trained: Trained, role: Role) -> dict[str, Any]:
    """Save a model that was trained, test it, and say what it costs."""
    weights = _save(scene, role, trained.model)
    test = scene.test(trained.model).as_dict()
    validation, before = trained.validation, trained.stages[-1].validation_before_recalibration
    return {
        "seed": scene.config.seed,
        "data": scene.dataset.name,
        "weights": weights,
        "test": test,
        "validation": validation.as_dict() if validation else None,
        "validation_before_recalibration": before.as_dict() if before else None,
        "best": _best(scene, trained, role, {"test": test, "weights": weights}),
        "cost": _cost(trained.model, scene.feed.image_size),
    }


def _best(scene: Scene, trained: Trained, role: Role, last: dict[str, Any]) -> dict[str, Any] | None:
    """The weights that validation would have chosen, saved and tested beside the last ones; None without validation."""
    best = trained.best
    if best is None:
        return None
    record: dict[str, Any] = {
        "epoch": best.epoch,
        "validation_top1": best.validation.top1,
        "validation_nll": best.validation.nll,
    }
    stopped_early = scene.config.training.early_stop_patience is not None  # then the best weights are back already
    if stopped_early or best.epoch == trained.stages[-1].epochs:
        return record | last
    kept = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    trained.model.load_state_dict(best.state)
    recalibrated(trained.model, scene.feed, regime_of(scene.config), scene.place.compute)
    record |= {
        "test": scene.test(trained.model).as_dict(),
        "weights": _save(scene, f"{role}-best", trained.model),
    }
    trained.model.load_state_dict(kept)
    return record


def _training_record(trained: Sequence[Trained]) -> dict[str, Any]:
    reports = [report for one in trained for report in one.stages]
    return {
        "stages": [
            {
                "title": r.title,
                "role": r.role,
                "method": r.method,
                "epochs": r.epochs,
                "steps": r.steps,
                "terms": list(r.terms),
            }
            for r in reports
        ],
        "timing": {
            "seconds": sum(one.seconds for one in trained),
            "stages": {report.title: report.seconds for report in reports},
        },
    }


def _cost(model: nn.Module, image_size: int) -> dict[str, int]:
    return {"parameters": count_parameters(model), "macs": count_macs(model, image_size)}


def _save(scene: Scene, name: str, model: nn.Module) -> str | None:
    """Save weights with what is needed to use them. No paths or times: equal runs leave equal files.

    Returns:
        The file's name; None where nothing is kept.
    """
    if scene.run_dir is None:
        return None
    source = {
        "distillab": __version__,
        "run_sha256": scene.run_sha256,
        "method": getattr(scene.config, "method", None),
        "role": name,
        "seed": scene.config.seed,
        "data": scene.dataset.name,
    }
    path = scene.run_dir.path / f"{name}.safetensors"
    save_weights(model, path, {"source": source})
    return path.name


def _conclude(scene: Scene, summary: dict[str, Any], models: Mapping[Role, nn.Module]) -> RunResult:
    """Add what concerns the whole run, and write `result.json`: the last file, which says that the run is complete."""
    model = models[summary["role"]]
    spread = latency(model, scene.feed.image_size, device=scene.place.compute.device)
    summary["run_sha256"] = scene.run_sha256
    summary["noise"] = noise_in_words(summary["test"]["top1"], summary["test"]["num_samples"])
    summary["timing"] |= {
        "run_seconds": time.perf_counter() - scene.started,
        "latency_seconds": spread.median_seconds,
        "latency_spread_seconds": [spread.low_seconds, spread.high_seconds],
    }
    if scene.run_dir is None:
        return RunResult(None, summary, models)
    scene.run_dir.write_metrics_table()
    scene.run_dir.write_json("result.json", summary)
    return RunResult(scene.run_dir.path, summary, models)


def _file_name(spec: str) -> str:
    """A model's name as a part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in spec)[-40:]
