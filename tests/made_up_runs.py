"""Run folders as runs leave them, written without any run: quick to make, with any numbers and names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillab.config import merged, resolve_distill, resolve_train, to_toml

RECIPE: Mapping[str, Any] = {"data": "digits", "teacher": "cnn8", "assistant": "cnn12", "student": "cnn16"}
NUM_IMAGES = 200


def scores(top1: float, **more: Any) -> dict[str, Any]:
    """Numbers on the test images, as a result has them."""
    return {"num_samples": NUM_IMAGES, "top1": top1, "top5": 1.0, "nll": 3 * (1 - top1), "ece": 0.04, **more}


def write_run(
    folder: Path,
    method: str,
    *,
    top1: float = 0.9,
    seed: int = 0,
    teacher_top1: float = 0.95,
    settings: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Path:
    """Write a complete run.

    Args:
        folder: Will hold it.
        method: A plan's name, or "alone", "teacher", "assistant".
        top1: On the test images.
        seed: Of the run.
        teacher_top1: Of the teacher of a distilled student.
        settings: Laid over those of `RECIPE`.
        result: Laid over what `result.json` says.
    """
    values = {"seed": seed, **(settings or {})}
    taught = method not in ("alone", "teacher", "assistant")
    if taught:
        config: Any = resolve_distill(RECIPE, {"method": method, **values})
    else:
        config = resolve_train(RECIPE, {"role": "student" if method == "alone" else method, **values})
    said: dict[str, Any] = {
        "format_version": 1,
        "kind": "distill" if taught else "train",
        "role": config.role if not taught else "student",
        "model": config.student if taught else config.model,
        "seed": seed,
        "data": config.data,
        "weights": None,
        "test": scores(top1),
        "cost": {"parameters": 705_402, "macs": 25_762_560},
        "timing": {"seconds": 5.0 + seed, "latency_seconds": 0.002},
    }
    if taught:
        said["test"] |= {"teacher_agreement": 0.9, "teacher_divergence": 0.1, "top1_where_teacher_wrong": 0.5}
        said["teacher"] = {
            "model": "cnn8",
            "source": "runs/teacher",
            "test": scores(teacher_top1),
            "cost": {"parameters": 4_756_170, "macs": 164_550_000},
        }
    folder.mkdir(parents=True)
    epochs = [
        {"role": said["role"], "stage": "only", "epoch": n, "loss": 1 / n, "train_top1": 1 - 0.5 / n} for n in (1, 2)
    ]
    write(folder / "config.toml", to_toml(config))
    write(folder / "result.json", json.dumps(merged(said, result or {})))
    write(folder / "env.json", json.dumps(ENVIRONMENT))
    write(folder / "command.txt", f"distillab distill --method {method}\n")
    write(folder / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder


ENVIRONMENT = {
    "distillab": "0.1.0",
    "python": "3.11.2",
    "platform": "Linux",
    "versions": {"torch": "2.14.1"},
    "device": "cpu",
    "device_name": "AMD EPYC",
    "threads": 2,
    "git": {"commit": "abc123", "changed": False},
}


def write(path: Path, text: str) -> None:
    """Write a file whose name and content may hold anything."""
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_comparison(folder: Path, tops: Mapping[str, Mapping[str, float]], **more: Any) -> Path:
    """Write a comparison of one teacher and two seeds.

    Args:
        folder: Will hold it.
        tops: Accuracy of the first seed by table and row; the second one's is 0.01 more.
        more: Laid over every row of `results.json`.
    """
    write_run(folder / "teacher", "teacher", top1=0.95)
    rows = []
    for number, (table, methods) in enumerate(tops.items()):
        for method, top1 in methods.items():
            names = [f"seed-{seed}-{number}/{method}" for seed in (0, 1)]
            for seed, name in enumerate(names):
                settings = {"training": {"batch_size": 32 * (1 + number)}}
                write_run(folder / name, method, top1=top1 + 0.01 * seed, seed=seed, settings=settings)
            rows.append({"table": table, "method": method, "run_dirs": names, "num_teachers": 1, **more})
    write(folder / "comparison.json", "{}")
    write(folder / "results.json", json.dumps({"rows": rows}))
    return folder
