"""A run's images, in batches; and whether models and images fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distillab.checks import check_labels, check_normalization
from distillab.config import RunConfig
from distillab.data.batches import EvaluationBatches, TrainingBatches, on_device
from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import validation_split
from distillab.data.streaming import StreamedImages, fits_on_device
from distillab.errors import DataError, ShapeError
from distillab.guidance.cache import CacheKey, LogitsCache
from distillab.models.catalog import MODELS
from distillab.models.classifier import Classifier
from distillab.preparation import Workplace
from distillab.runtime.device import Compute, choose_execution
from distillab.runtime.events import Note, Observer, silent
from distillab.training.stage import Feed

_SAMPLE_IMAGES = 512


def check_fits(model: Classifier, dataset: Dataset, image_size: int, *, where: str, observer: Observer) -> None:
    """See that a model that was loaded takes a data set's images and knows its classes.

    Other names for as many classes are let through, and other normalisation; the observer is told.

    Args:
        model: From a weight file.
        dataset: What it will look at.
        image_size: Side of the images that it will get, in pixels.
        where: The file, for the message.
        observer: Is told of other names, and of other normalisation than by the data's statistics.

    Raises:
        ShapeError: It takes images of another size, knows another number of classes, or knows them in another order.
    """
    if model.image_size != image_size:
        raise ShapeError(
            f"the model takes images of {model.image_size}x{model.image_size}, not {image_size}x{image_size}",
            where=where,
            hint=f"give --image-size {model.image_size}, if the others take such images too",
        )
    if model.num_classes != dataset.num_classes:
        raise ShapeError(
            f"the model knows {model.num_classes} classes, the data has {dataset.num_classes}",
            where=where,
            hint="give the data that it was trained on: --data",
        )
    check_normalization(model, dataset, where=where, observer=observer)
    if model.classes is None or model.classes == dataset.classes:
        return
    first = ", ".join(model.classes[:4])
    if set(model.classes) == set(dataset.classes):
        raise ShapeError(
            f"the model has the same classes as the data, but in another order: {first}, ...",
            where=where,
            hint="give the data that it was trained on: --data",
        )
    observer(Note(f"{where}: the model's classes ({first}, ...) have other names than the data's"))


def build_feed(
    config: RunConfig, dataset: Dataset, image_size: int, compute: Compute, *, observer: Observer = silent
) -> Feed:
    """Cut, order and place the images of a run.

    Raises:
        DataError: Nothing is left to train on, or images of one class only.
    """
    train, validation = _split(config, dataset)
    check_labels(dataset, train, validation, observer=observer)
    num_bytes = dataset.train.images.nbytes + dataset.test.images.nbytes
    is_resident = fits_on_device(num_bytes, compute.device, config.resident_gib)

    def placed(images: NDArray[np.uint8]) -> Tensor | StreamedImages:
        return on_device(images, compute.device) if is_resident else StreamedImages(images)

    def in_order(images: Tensor | StreamedImages, of: ImageSet, indices: NDArray[np.int64] | None) -> EvaluationBatches:
        return EvaluationBatches(images, of.labels, indices, device=compute.device, image_size=image_size)

    images = placed(dataset.train.images)  # once, for all that read them
    training = TrainingBatches(
        images,
        dataset.train.labels,
        train,
        batch_size=config.training.batch_size,
        num_classes=dataset.num_classes,
        augment=config.augment,
        label_smoothing=config.training.label_smoothing,
        seed=config.seed,
        device=compute.device,
        image_size=image_size,
        views=config.views,
    )
    some = np.random.default_rng(config.split.seed).permutation(train)[:_SAMPLE_IMAGES]
    key = CacheKey(
        teacher="",
        data=dataset.sha256,
        images=config.split.model_dump_json(),
        num_samples=len(train),
        num_classes=dataset.num_classes,
        image_size=image_size,
        compute=compute,
        augment=config.augment,
        seed=config.seed,
    )
    return Feed(
        training=training,
        validation=in_order(images, dataset.train, validation) if len(validation) else None,
        test=in_order(placed(dataset.test.images), dataset.test, None),
        sample=in_order(images, dataset.train, some),
        num_classes=dataset.num_classes,
        image_size=image_size,
        key=key,
        is_resident=is_resident,
    )


def build_place(
    config: RunConfig,
    feed: Feed,
    compute: Compute,
    observer: Observer,
    *,
    folder: Path | None,
) -> Workplace:
    """What all stages of a run share: how steps are executed, and the teachers' logits that are kept.

    Args:
        config: The run's settings.
        feed: Images.
        compute: Device and precision.
        observer: Is told of progress.
        folder: Keeps logits for later runs; None: they are kept for this run, if it sees any view twice.

    Raises:
        ConfigError: Steps cannot be executed on the device as they are to be.
    """
    num_steps = config.training.epochs * feed.training.steps_per_epoch
    execution = choose_execution(config.training.execution, compute.device, num_steps)
    sees_again = feed.key is not None and (config.views is not None or not feed.key.augmented)
    cache = None
    if folder or sees_again:
        cache = LogitsCache(folder, limit_bytes=int(config.cache_gib * 2**30), observer=observer)
    return Workplace(feed, config.seed, replace(compute, execution=execution), observer, cache=cache)


def _split(config: RunConfig, dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training images that are learnt from, and those that are held out."""
    train, validation = validation_split(
        dataset.train.labels,
        fraction=config.split.validation_fraction,
        seed=config.split.seed,
        limit=config.split.train_limit,
    )
    if not len(train):
        raise DataError("no images are left to train on", where=config.data, hint="lower split.validation_fraction")
    return train, validation


def common_image_size(specs: Sequence[str]) -> int:
    """The size of images that every model takes.

    Raises:
        ShapeError: They take different ones.
    """
    sizes = {spec: MODELS[spec].input_size if spec in MODELS else 32 for spec in specs}
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"the models take images of different sizes: {sizes}", where="image_size", hint="give image_size"
        )
    return next(iter(sizes.values()))
