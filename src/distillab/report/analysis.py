"""What only the models and the images can say: calibration, confusions, who errs where, and how alike layers are."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distillab.config import RunConfig
from distillab.data.catalog import open_dataset
from distillab.data.dataset import Dataset
from distillab.errors import DataError, DistillabError
from distillab.feeding import check_fits
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model
from distillab.report.collect import Collection, Variant
from distillab.report.disagreement import Kind, disagreements
from distillab.report.look import Desk, Look
from distillab.report.run_record import readable
from distillab.runtime.device import Compute, choose_compute, computing
from distillab.runtime.events import Note, Observer, silent

MOST_MODELS = 12
"""So many are looked at, the first ones; each is run over the test images once."""

_PICTURES_A_KIND = 6
_PICTURE_PIXELS = 64


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found.

    Attributes:
        looks: One a model, in the order of the rows.
        classes: Their names.
        labels: [N] of the test images.
        shown: [n] positions of the test images that features were looked at with.
        kinds: Images on which the teacher, the student alone and the best distilled student disagree.
        pictures: Position of such an image -> PNG as a data URI.
        num_held_out: Images that temperatures were fitted on.
        notes: What was left out, and why; a sentence each.
    """

    looks: tuple[Look, ...]
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
    """Run the models of a report over their test images, one a row: that of its first seed.

    Nothing is downloaded. Models that cannot be looked at are left out and named.

    Args:
        collection: What the report is about.
        allow_code: Data and weight files may name code that makes them.
        observer: Is told what takes time.

    Raises:
        DataError: The rows have different data, it is not there, or no model can be looked at.
        ConfigError: The data is code that is not allowed.
    """
    chosen = collection.variants[:MOST_MODELS]
    config = _common_config(chosen)
    notes = [
        f"{variant.name}: not among the first {MOST_MODELS} rows." for variant in collection.variants[MOST_MODELS:]
    ]
    compute = choose_compute("auto", config.training.precision)
    with computing(compute, config.threads):
        models = _load(chosen, compute, allow_code, notes, observer)
        size = config.image_size or next(iter(models.values())).image_size
        dataset = open_dataset(
            config.data,
            data_dir=config.data_dir,
            offline=True,
            image_size=size,
            split=config.split,
            allow_code=allow_code,
            observer=observer,
        )
        desk = Desk(config, dataset, size, compute)
        looks: list[Look] = []
        reference: dict[str, Tensor] = {}
        for position, model in models.items():
            variant = chosen[position]
            observer(Note(f"looking at {variant.name}"))
            try:
                check_fits(model, dataset, size, where=variant.name, observer=observer)
                look, features = desk.look(variant, model, reference)
            except DistillabError as error:
                notes.append(f"{variant.name}: {_sentence(error)}")
                continue
            looks.append(look)
            if variant.place == "teacher" and not reference:
                reference = features
    if not looks:
        raise DataError("no model can be looked at", where=readable(config.data), hint=" ".join(notes))
    labels = dataset.test.labels[: desk.num_test]
    kinds = _disagreements(collection, looks, labels)
    return Analysis(
        looks=tuple(looks),
        classes=tuple(map(readable, dataset.classes)),
        labels=labels,
        shown=desk.shown,
        kinds=kinds,
        pictures=_pictures(dataset, [case.position for kind in kinds for case in kind.cases]),
        num_held_out=desk.num_held_out,
        notes=tuple(notes),
    )


def _disagreements(collection: Collection, looks: Sequence[Look], labels: NDArray[np.int64]) -> tuple[Kind, ...]:
    """Between the first teacher, the first student alone and the best distilled student, if all were looked at."""
    choices = {look.variant.name: look.choices for look in looks}
    trio = [*collection.of("teacher")[:1], *collection.of("alone")[:1], *filter(None, [collection.best])]
    if len(trio) < 3 or any(variant.name not in choices for variant in trio):
        return ()
    teacher, alone, distilled = (choices[variant.name] for variant in trio)
    return disagreements(labels, teacher, alone, distilled, most_cases=_PICTURES_A_KIND)


def _common_config(variants: Sequence[Variant]) -> RunConfig:
    """The settings of data, which must be one for all."""
    configs = [variant.first.config for variant in variants]
    for name in ("data", "image_size"):
        values = {str(getattr(config, name)) for config in configs}
        if len(values) > 1:
            raise DataError(
                f"the runs do not share their images: {name} is {readable(' and '.join(sorted(values)))}",
                where="data",
                hint="make a report of runs with one data set",
            )
    if len({config.split for config in configs}) > 1:
        raise DataError(
            "the runs do not share their images: they split them otherwise",
            where="split",
            hint="make a report of runs with one split",
        )
    return configs[0]


def _load(
    variants: Sequence[Variant], compute: Compute, allow_code: bool, notes: list[str], observer: Observer
) -> dict[int, Classifier]:
    models: dict[int, Classifier] = {}
    for position, variant in enumerate(variants):
        if variant.first.weights is None:
            notes.append(f"{variant.name}: no weights were kept.")
            continue
        try:
            model = load_model(variant.first.weights, allow_code=allow_code, observer=observer)
        except DistillabError as error:
            notes.append(f"{variant.name}: {_sentence(error)}")
            continue
        models[position] = model.to(compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    if not models:
        raise DataError("no model can be loaded", where="weights", hint=" ".join(notes))
    return models


def _sentence(error: DistillabError) -> str:
    return f"{readable(error.message)}."


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
