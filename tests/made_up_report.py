"""A report of runs that never were: quick to make, with everything in it that a report can have."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distillab.config import resolve_distill, resolve_train
from distillab.evaluation.calibration import fit_temperature, reliability
from distillab.evaluation.metrics import expected_calibration_error
from distillab.report.analysis import Analysis
from distillab.report.collect import Collection, Place, Variant
from distillab.report.disagreement import disagreements
from distillab.report.document import Document
from distillab.report.look import Calibration, Look
from distillab.report.sections import build_document
from distillab.results.run_record import Cost, Environment, Epoch, Result, Run, Scores, Timing

METHODS = ("st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft")
DIGITS = tuple("0123456789")

_MODELS = {"teacher": ("cnn8", 4_756_170, 164_550_000, 0.0021), "student": ("cnn16", 705_402, 25_760_000, 0.0019)}
_TRUTH = {"teacher": 0.972, "alone": 0.955}
_NUM_IMAGES = 359
_EPOCHS = 12
_LAYERS = ("layer1", "layer2", "layer3", "layer4", "logits")


def document(
    *, methods: Sequence[str] = METHODS, classes: Sequence[str] = DIGITS, num_seeds: int = 5, title: str | None = None
) -> Document:
    """A whole report.

    Args:
        methods: Names of its distilled students; beside them are a teacher and a student alone.
        classes: Names of the classes.
        num_seeds: Runs of every student.
        title: Of the page.
    """
    random = np.random.default_rng(0)
    teacher = Variant("teacher", "teacher", (_run("teacher", "teacher", 0, random),))
    students = [("alone", "alone"), *((name, "distilled") for name in methods)]
    variants = (
        teacher,
        *(
            Variant(name, place, tuple(_run(name, place, seed, random) for seed in range(num_seeds)))
            for name, place in students
        ),
    )
    differing = {"distillation.temperature": ("-", "-", *("4.0" if n % 2 else "1.0" for n, _ in enumerate(methods)))}
    collection = Collection(variants, differing, ("runs/one-that-died is not complete.",))
    return build_document(collection, _analysis(collection, classes, random), title=title or "Distillation on digits")


def _run(name: str, place: Place, seed: int, random: np.random.Generator) -> Run:
    role = "teacher" if place == "teacher" else "student"
    recipe = {"data": "digits", "teacher": "cnn8", "assistant": "cnn12", "student": "cnn16"}
    config = resolve_distill(recipe, {}) if place == "distilled" else resolve_train(recipe, {"role": role})
    model, parameters, macs, latency = _MODELS[role]
    known = _TRUTH.get(name, 0.95 + 0.004 * (len(name) % 7))
    top1 = round((known + random.normal(0, 0.006)) * _NUM_IMAGES) / _NUM_IMAGES
    result = Result(
        kind="distill" if place == "distilled" else "train",
        role=role,
        model=model,
        data="digits",
        seed=seed,
        test=Scores(
            num_samples=_NUM_IMAGES,
            top1=top1,
            nll=3 * (1 - top1),
            ece=0.04,
            teacher_agreement=0.96 if place == "distilled" else None,
        ),
        cost=Cost(parameters=parameters, macs=macs),
        timing=Timing(seconds=5.0 + 8.0 * random.random(), latency_seconds=latency * (0.95 + 0.1 * random.random())),
    )
    history = tuple(
        Epoch(
            role=role,
            stage="only",
            loss=2.3 * 0.7**epoch + 0.1 * random.random(),
            train_top1=1 - 0.8 * 0.7**epoch,
            validation_top1=known - 0.8 * 0.6**epoch + 0.01 * random.random(),
            validation_loss=2.3 * 0.75**epoch + 0.1 + 0.02 * random.random(),
        )
        for epoch in range(1, _EPOCHS + 1)
    )
    environment = Environment(
        distillab="0.1.0",
        python="3.11.2",
        platform="Linux-6.1-x86_64-with-glibc2.36",
        versions={"torch": "2.14.1", "numpy": "2.4.6"},
        device="cpu",
        threads=2,
    )
    folder = Path("/home/somebody/experiments/runs") / f"{name.replace('/', '-')}-{seed}"
    command = f"distillab distill --recipe digits-demo --method {name} --seed {seed} --output {folder}"
    return Run(folder, config, result, history, environment, command, None)


def _analysis(collection: Collection, classes: Sequence[str], random: np.random.Generator) -> Analysis:
    labels = np.arange(_NUM_IMAGES) % len(classes)
    # What is hard for one model is hard for the others.
    shared = random.normal(0, 1, (_NUM_IMAGES, len(classes)))
    shown = np.arange(0, _NUM_IMAGES, 3)
    looks = tuple(_look(variant, labels, shared, shown, random) for variant in collection.variants)
    trio = [look.choices for look in (looks[0], looks[1], looks[-1])]
    if collection.best is not None:
        trio[2] = next(look.choices for look in looks if look.variant is collection.best)
    kinds = disagreements(labels, trio[0], trio[1], trio[2], most_cases=6)
    return Analysis(
        looks=looks,
        choices={look.variant.name: {0: look.choices} for look in looks if look.variant.place == "alone"},
        classes=tuple(classes),
        labels=labels,
        shown=shown,
        kinds=kinds,
        pictures={case.position: _picture(case.position) for kind in kinds for case in kind.cases},
        num_held_out=400,
        notes=(),
    )


def _look(
    variant: Variant,
    labels: np.ndarray,
    shared: np.ndarray,
    shown: np.ndarray,
    random: np.random.Generator,
) -> Look:
    size = shared.shape[1]
    logits = torch.from_numpy(
        shared + random.normal(0, 0.8, shared.shape) + 4.3 * np.eye(size)[labels] * random.uniform(0.92, 1.05)
    )
    truth = torch.from_numpy(labels)
    temperature = fit_temperature(2.0 * logits, truth)

    def calibration(scores: torch.Tensor) -> Calibration:
        return Calibration(tuple(reliability(scores, truth)), expected_calibration_error(scores, truth).item())

    angles = 2 * np.pi * labels[shown] / size
    plane = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3 + random.normal(0, 0.6, (len(shown), 2))
    alike = () if variant.place == "teacher" else _LAYERS
    return Look(
        variant=variant,
        choices=logits.argmax(dim=1).numpy(),
        calibration=calibration(2.0 * logits),
        temperature=temperature,
        mended=calibration(2.0 * logits / temperature),
        similarity=tuple(
            (layer, layer, float(np.clip(0.95 - 0.12 * n + random.normal(0, 0.04), 0, 1)))
            for n, layer in enumerate(alike)
        ),
        plane=plane,
        plane_share=0.4,
    )


def _picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
