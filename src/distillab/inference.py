"""A trained model at work: evaluated on a data set, or asked about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distillab.config import RunConfig
from distillab.data.augment import unit_images
from distillab.data.batches import EvaluationBatches
from distillab.data.catalog import open_dataset
from distillab.data.decoding import EXTENSIONS, decode_images
from distillab.errors import ConfigError, DataError
from distillab.evaluation.cost import count_macs, count_parameters
from distillab.evaluation.evaluate import evaluate
from distillab.evaluation.metrics import noise_in_words
from distillab.feeding import check_fits, common_image_size
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model
from distillab.runtime.device import Compute, choose_compute, computing
from distillab.runtime.events import Observer, silent


def evaluate_file(
    source: str,
    config: RunConfig,
    *,
    teacher: str | None = None,
    teacher_model: str | None = None,
    model: str | None = None,
    batch_size: int = 512,
    allow_code: bool = False,
    observer: Observer = silent,
) -> dict[str, Any]:
    """How good a saved model is on the test images of a data set.

    Args:
        source: Weight file or run folder.
        config: Names the data (which has no default here), the device, the threads and the precision.
        teacher: Weight file or run folder to compare with, or None.
        teacher_model: Architecture of the teacher, where its file does not say.
        model: Architecture of the model, where its file does not say.
        batch_size: Images at once.
        allow_code: Weight files may name code that builds their model.
        observer: Is told of assumptions.

    Returns:
        "source", "data", "test" (see `Evaluation`), "cost" and "noise", ready for JSON.

    Raises:
        CheckpointError: A model cannot be loaded.
        ConfigError: The data is not named.
        ShapeError: A model does not go with the data: image size, number or order of the classes.
    """
    compute = choose_compute(config.device, config.training.precision)
    # Weights that are given an architecture may not say how many classes there are: the data do.
    student = None if model else _load(source, None, None, config.image_size or 32, compute, allow_code, observer)
    if "data" not in config.model_fields_set:
        raise ConfigError(
            "no run's config.toml stands beside the weights, so the images to test on are not known",
            where="data",
            hint="name them: --data digits, or --data DIR",
        )
    size = config.image_size or (student.image_size if student else common_image_size([str(model)]))
    dataset = open_dataset(
        config.data,
        data_dir=config.data_dir,
        offline=config.offline,
        image_size=size,
        split=config.split,
        allow_code=True,  # typed by hand
        observer=observer,
    )
    if student is None:
        student = _load(source, model, dataset.num_classes, size, compute, allow_code, observer)
    check_fits(student, dataset, size, where=source, observer=observer)
    guide = None
    if teacher:
        guide = _load(teacher, teacher_model, dataset.num_classes, size, compute, allow_code, observer)
        check_fits(guide, dataset, size, where=f"teacher: {teacher}", observer=observer)
    batches = EvaluationBatches(
        dataset.test.images,
        dataset.test.labels,
        None,
        batch_size=batch_size,
        device=compute.device,
        image_size=size,
    )
    with computing(compute, config.threads):
        found = evaluate(student, batches, teacher=guide, autocast_dtype=compute.autocast_dtype)
    return {
        "source": source,
        "data": dataset.name,
        "test": found.as_dict(),
        "cost": {"parameters": count_parameters(student), "macs": count_macs(student, size)},
        "noise": noise_in_words(found.top1, found.num_samples),
    }


def predict_files(
    source: str,
    inputs: Sequence[Path],
    *,
    model: str | None = None,
    num_classes: int | None = None,
    device: str = "auto",
    batch_size: int = 256,
    allow_code: bool = False,
    observer: Observer = silent,
) -> list[dict[str, Any]]:
    """What a saved model sees in images.

    Args:
        source: Weight file or run folder.
        inputs: Image files, and folders that are searched for images.
        model: Architecture, where the file does not say.
        num_classes: Of the model, where neither the file nor its weights say.
        device: See `RunConfig.device`.
        batch_size: Images at once.
        allow_code: A weight file may name code that builds its model.
        observer: Is told of assumptions.

    Returns:
        One record an image, in the order given, folders sorted by path: "file", "class" (its name, or its number
        where the model does not know names), "label", "confidence" (0..1) and "probabilities" by class.

    Raises:
        DataError: There are no images, or one cannot be read (it is named).
    """
    compute = choose_compute(device)
    classifier = _load(source, model, num_classes, 32, compute, allow_code, observer)
    size = classifier.image_size
    files = [file for entry in inputs for file in _image_files(entry)]
    if not files:
        raise DataError("there are no images", where=", ".join(map(str, inputs)), hint="give image files or a folder")
    names = list(classifier.classes or map(str, range(classifier.num_classes)))
    records: list[dict[str, Any]] = []
    with computing(compute, None):
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            images = np.empty((len(chunk), size, size, 3), np.uint8)
            decode_images(chunk, images)
            records += _records(chunk, _probabilities(classifier, torch.from_numpy(images), compute), names)
    return records


def _image_files(entry: Path) -> list[Path]:
    """The file itself, or all images below a folder, sorted by path."""
    if not entry.is_dir():
        return [entry]  # what cannot be read is named when it is decoded
    return sorted(file for file in entry.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())


@torch.no_grad()
def _probabilities(model: nn.Module, images: torch.Tensor, compute: Compute) -> torch.Tensor:
    with compute.autocast():
        logits: torch.Tensor = model(unit_images(images.to(compute.device), images.shape[1]))
    return logits.double().softmax(dim=1).cpu()


def _records(files: Sequence[Path], probabilities: torch.Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    confidences, labels = probabilities.max(dim=1)
    return [
        {
            "file": str(file),
            "class": names[label],
            "label": label,
            "confidence": confidence,
            "probabilities": dict(zip(names, row, strict=True)),
        }
        for file, label, confidence, row in zip(
            files, labels.tolist(), confidences.tolist(), probabilities.tolist(), strict=True
        )
    ]


def _load(
    source: str,
    spec: str | None,
    num_classes: int | None,
    image_size: int,
    compute: Compute,
    allow_code: bool,
    observer: Observer,
) -> Classifier:
    model = load_model(
        source,
        spec=spec,
        num_classes=num_classes,
        image_size=image_size,
        allow_code=allow_code,
        observer=observer,
    )
    return compute.take(model)
