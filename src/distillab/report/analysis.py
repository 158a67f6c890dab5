"""What only the models and the images can say: calibration, confusions, who errs where, and how alike layers are."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distillab.config import AnyConfig, DistillConfig
from distillab.data.catalog import open_dataset
from distillab.data.dataset import Dataset
from distillab.errors import CheckpointError, DataError, DistillabError
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model
from distillab.report.collect import Collection, Variant
from distillab.report.disagreement import Kind, disagreements
from distillab.report.look import Desk, Look
from distillab.results.run_record import Run, readable
from distillab.runtime.device import Compute, choose_compute, computing
from distillab.runtime.events import Note, Observer, silent
from distillab.scene import run_image_size

MOST_MODELS = 12
"""So many are looked at: the three whose choices are held against each other, then the first ones."""

_PICTURES_A_KIND = 6
_PICTURE_PIXELS = 64


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found.

    Attributes:
        looks: One a model, in the order of the rows.
        choices: Of students alone, whose runs know of no teacher: name -> seed -> [N] the class that the model chooses
            for each test image.
        classes: Their names.
        labels: [N] of the test images.
        shown: [n] positions of the test images that features were looked at with.
        kinds: Images on which the teacher, the student alone and the best distilled student disagree.
        pictures: Position of such an image -> PNG as a data URI.
        num_held_out: Images that temperatures were fitted on.
        notes: What was left out, and why; a sentence each.
    """

    looks: tuple[Look, ...]
    choices: Mapping[str, Mapping[int, NDArray[np.int64]]]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    shown: NDArray[np.int64]
    kinds: tuple[Kind, ...]
    pictures: Mapping[int, str]
    num_held_out: int
    notes: tuple[str, ...]

    def of(self, variant: Variant | None) -> Look | None:
        """What was found of a row; None if it was not looked at."""
        return next((look for look in self.looks if look.variant is variant), None)


def analyse(collection: Collection, *, allow_code: bool = False, observer: Observer = silent) -> Analysis:
    """Run the models of a report over their test images, one a row: that of its first seed. Of students alone the
    choices of every seed are wanted, to be held against the teacher's.

    Nothing is downloaded. Models that cannot be looked at are left out and named.

    Args:
        collection: What the report is about.
        allow_code: Data and weight files may name code that makes them.
        observer: Is told what takes time.

    Raises:
        DataError: The rows have different data, it is not there, or no model can be looked at.
        ConfigError: The data is code that is not allowed.
    """
    chosen = models_looked_at(collection)
    notes = [
        f"{variant.name}: not among the {MOST_MODELS} models that are looked at."
        for variant in collection.variants
        if variant.runs and variant not in chosen
    ]
    config = _common_config(chosen)
    compute = choose_compute("auto", config.training.precision)
    with computing(compute, config.threads):
        splits = [run.config.split for variant in chosen for run in variant.runs]
        desk = Desk(config, splits, _open(config, allow_code, observer), compute)
        observer(Note(f"looking at {len(chosen)} models, {desk.num_test:,} test images each"))
        looks: list[Look] = []
        choices: dict[str, dict[int, NDArray[np.int64]]] = {}
        features: dict[str, dict[str, Tensor]] = {}  # of teachers, by name
        for variant in chosen:
            teacher = collection.teacher_of(variant)
            reference = features.get(teacher.name, {}) if teacher else {}
            try:
                look, found = desk.look(
                    variant,
                    _load(variant, variant.first, desk.dataset.num_classes, compute, allow_code, observer),
                    reference,
                    observer,
                )
                if variant.place == "alone":
                    choices[variant.name] = {variant.first.result.seed: look.choices}
                    for run in variant.runs[1:]:
                        if run.result.seed not in choices[variant.name]:  # with several teachers it is there for each
                            model = _load(variant, run, desk.dataset.num_classes, compute, allow_code, silent)
                            choices[variant.name][run.result.seed] = desk.choices(model)
            except DistillabError as error:
                notes.append(f"{variant.name}: {readable('; '.join(filter(None, (error.message, error.hint))))}.")
                continue
            looks.append(look)
            if variant.place == "teacher":
                features[variant.name] = found
    if not looks:
        raise DataError("no model can be looked at", where=readable(config.data), hint=" ".join(notes))
    dataset = desk.dataset
    labels = dataset.test.labels[: desk.num_test]
    kinds = _disagreements(collection, looks, labels)
    return Analysis(
        looks=tuple(looks),
        choices=choices,
        classes=tuple(map(readable, dataset.classes)),
        labels=labels,
        shown=desk.shown,
        kinds=kinds,
        pictures=_pictures(dataset, [case.position for kind in kinds for case in kind.cases]),
        num_held_out=desk.num_held_out,
        notes=tuple(notes),
    )


def models_looked_at(collection: Collection) -> list[Variant]:
    """Who is looked at, in the order of the rows: teachers come before those that are held against them."""
    first = [*(collection.trio or ()), *collection.variants]
    chosen = list(dict.fromkeys(variant.name for variant in first if variant.runs))[:MOST_MODELS]
    return [variant for variant in collection.variants if variant.name in chosen]


def _common_config(variants: Sequence[Variant]) -> AnyConfig:
    """Settings of data that do for all, whose test images must be the same; a student's, who decides on the size of the
    images.
    """
    configs = [variant.first.config for variant in variants]
    told = {
        "data": {config.data for config in configs},
        **{f"split.{name}": {getattr(config.split, name) for config in configs} for name in ("test_fraction", "seed")},
    }
    for name, values in told.items():
        if len(values) > 1:
            raise DataError(
                f"the runs do not share their images: {name} is {readable(' and '.join(sorted(map(str, values))))}",
                where=name,
                hint="make a report of runs with one data set and one split",
            )
    students = [variant.first.config for variant in variants if variant.place in ("alone", "distilled")]
    return [*students, *configs][0]


def _open(config: AnyConfig, allow_code: bool, observer: Observer) -> Dataset:
    return open_dataset(
        config.data,
        data_dir=config.data_dir,
        offline=True,
        image_size=run_image_size(config),
        split=config.split,
        allow_code=allow_code,
        observer=observer,
    )


def _load(
    variant: Variant, run: Run, num_classes: int, compute: Compute, allow_code: bool, observer: Observer
) -> Classifier:
    if run.weights is None:
        raise CheckpointError("no weights were kept, or they are gone", where=variant.name)
    config = run.config
    model = load_model(
        run.weights,
        spec=config.teacher_model if isinstance(config, DistillConfig) and variant.place == "teacher" else None,
        num_classes=num_classes,
        image_size=run_image_size(config),
        allow_code=allow_code,
        observer=observer,
    )
    return compute.take(model)


def _disagreements(collection: Collection, looks: Sequence[Look], labels: NDArray[np.int64]) -> tuple[Kind, ...]:
    """Between teacher, student alone and best distilled student, if all were looked at."""
    choices = {look.variant.name: look.choices for look in looks}
    trio = collection.trio
    if trio is None or any(variant.name not in choices for variant in trio):
        return ()
    teacher, alone, distilled = (choices[variant.name] for variant in trio)
    return disagreements(labels, teacher, alone, distilled, most_cases=_PICTURES_A_KIND)


def _pictures(dataset: Dataset, positions: Sequence[int]) -> dict[int, str]:
    """Test images as PNG in data URIs, no larger than they are shown."""
    from PIL import Image

    found = {}
    for position in positions:
        image = Image.fromarray(np.asarray(dataset.test.images[position]))
        image.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        found[position] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found
