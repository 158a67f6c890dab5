"""What a run leaves: weights, their numbers on the test set, and `result.json`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distillab import __version__
from distillab.config import DistillConfig, TrainConfig, regime_of
from distillab.data.batches import on_device
from distillab.evaluation.cost import count_macs, count_parameters, latency
from distillab.evaluation.evaluate import evaluate_logits
from distillab.evaluation.metrics import noise_in_words
from distillab.execution import Trained
from distillab.identity import arithmetic
from distillab.models.weights import save_weights
from distillab.results.run_record import RESULT_FORMAT
from distillab.scene import Scene
from distillab.training.averaging import recalibrated
from distillab.training.config import Role


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


def train_result(scene: Scene, config: TrainConfig, trained: Trained) -> RunResult:
    """Save, test and describe a model that was trained alone."""
    role = config.role
    summary = {
        "format_version": RESULT_FORMAT,
        "kind": "train",
        "role": role,
        "model": config.model,
        **_outcome(scene, trained, role),
        **_training_record([trained]),
    }
    return _conclude(scene, summary, {role: trained.model})


def distill_result(
    scene: Scene,
    config: DistillConfig,
    models: Mapping[Role, nn.Module],
    trained: Mapping[Role, Trained],
    taught: Trained | None,
) -> RunResult:
    """Save, test and describe all roles, teacher first, since the others are compared with it."""
    scene.test_logits = scene.teacher_test_logits(models["teacher"])
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
    summary = {
        "format_version": RESULT_FORMAT,
        "kind": "distill",
        "role": "student",
        "method": config.method,
        "model": config.student,
        **_outcome(scene, trained["student"], "student"),
        **_training_record(list(trained.values())),
        **roles,
    }
    return _conclude(scene, summary, models)


def _outcome(scene: Scene, trained: Trained, role: Role) -> dict[str, Any]:
    """Save a model that was trained, test it, and say what it costs."""
    weights = save_model(scene, role, trained.model)
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
        "last": _tested(scene, trained.model, f"{role}-last", trained.last) if trained.last is not None else None,
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
    return record | _tested(scene, trained.model, f"{role}-best", best.state)


def _tested(scene: Scene, model: nn.Module, name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Save and test other weights of a model, which has its own again afterwards."""
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    recalibrated(model, scene.feed.training, regime_of(scene.config), scene.place.compute)
    record = {"test": scene.test(model).as_dict(), "weights": save_model(scene, name, model)}
    model.load_state_dict(kept)
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


def save_model(scene: Scene, name: str, model: nn.Module) -> str | None:
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
    summary["arithmetic"] = arithmetic(scene.place.compute)
    summary["noise"] = noise_in_words(summary["test"]["top1"], summary["test"]["num_samples"])
    summary["timing"] |= {
        "run_seconds": time.perf_counter() - scene.started,
        "latency_seconds": spread.median_seconds,
        "latency_spread_seconds": [spread.low_seconds, spread.high_seconds],
    }
    if scene.run_dir is None:
        return RunResult(None, summary, models)
    scene.run_dir.write_metrics_table()
    summary["files"] = _hashes(scene.run_dir.path)
    scene.run_dir.write_json("result.json", summary)
    scene.trackers.result(summary)
    return RunResult(scene.run_dir.path, summary, models)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the log and the weights. Of the settings `run_sha256` is one, less those of place and device."""
    paths = [folder / "metrics.jsonl", folder / "metrics.csv", *sorted(folder.glob("*.safetensors"))]
    return {path.name: file_sha256(path) for path in paths}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
