"""What all paths of a comparison have in common: the images, the models, the recipe."""

from __future__ import annotations

import numpy as np

from distillab.bench.config import BenchConfig
from distillab.data.catalog import open_dataset
from distillab.data.config import AugmentConfig
from distillab.data.dataset import Dataset, ImageSet
from distillab.errors import ConfigError
from distillab.models.catalog import build_model
from distillab.models.classifier import Classifier
from distillab.runtime.events import Observer
from distillab.runtime.reproducibility import seeded
from distillab.training.config import OptimizerConfig, Regime, ScheduleConfig, TrainingConfig

SEED = 0
CROP_PADDING = 4
LEARNING_RATE = 1e-3
IMAGE_SIZE = 32

AUGMENT = AugmentConfig(crop_padding=CROP_PADDING, horizontal_flip=True)
"""Random crop and flip, as nearly every classic script has them."""

_NOISE_IMAGES = 50_000  # as many as CIFAR-10 has
_NOISE_CLASSES = tuple("abcdefghij")


def open_images(config: BenchConfig, observer: Observer) -> Dataset:
    """The images to train on.

    Raises:
        ConfigError: There are fewer than a batch of them.
    """
    if config.data is None:
        dataset = noise(max(_NOISE_IMAGES, config.batch_size))
    else:
        dataset = open_dataset(
            config.data, data_dir=config.data_dir, image_size=IMAGE_SIZE, allow_code=True, observer=observer
        )
    if len(dataset.train) < config.batch_size:
        raise ConfigError(
            f"a batch of {config.batch_size} images is more than the {len(dataset.train)} that there are",
            where="batch_size",
            hint=f"take {len(dataset.train)} or less",
        )
    return dataset


def noise(num_images: int) -> Dataset:
    """Seeded noise of CIFAR-10's shape: what a step costs does not depend on what is to be seen.

    Args:
        num_images: To train on.
    """
    random = np.random.default_rng(SEED)
    images = random.integers(0, 256, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    train = ImageSet(images, random.integers(0, len(_NOISE_CLASSES), num_images))
    return Dataset(
        name="noise",
        classes=_NOISE_CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.29, 0.29, 0.29),
        train=train,
        test=ImageSet(images[:1], train.labels[:1]),
        sha256=f"{num_images} images of noise, seed {SEED}",
    )


def build(spec: str, dataset: Dataset) -> Classifier:
    """A model as it starts: the same weights on every path."""
    with seeded(SEED, "bench", spec):
        return build_model(spec, dataset.num_classes, mean=dataset.mean, std=dataset.std, image_size=IMAGE_SIZE)


def recipe(batch_size: int) -> Regime:
    """Adam at a constant rate, as the classic scripts have it; for longer than anybody will measure."""
    return Regime(
        training=TrainingConfig(epochs=10_000, batch_size=batch_size),
        optimizer=OptimizerConfig(name="adam", learning_rate=LEARNING_RATE, weight_decay=0.0),
        schedule=ScheduleConfig(name="constant", warmup_fraction=0.0),
    )
