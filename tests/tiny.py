"""A model and a data set that are small enough for tests to train on."""

import numpy as np
import torch
from torch import nn

from distillab.data.dataset import Dataset, ImageSet

SIZE = 16
CLASSES = ("red", "green", "blue")


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm and dropout; layers `first` and `second` can be tapped."""

    def __init__(self, num_classes: int, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.Dropout(0.2), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.third = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, C]."""
        features: torch.Tensor = self.third(self.second(self.first(images)))
        return self.head(features.mean(dim=(2, 3)))


def build(num_classes: int) -> nn.Module:
    return TinyNet(num_classes)


def build_wide(num_classes: int) -> nn.Module:
    return TinyNet(num_classes, width=9)


class FlatNet(nn.Module):
    """A linear classifier whose weights lie at its root: there is no layer to tap."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, 3 * SIZE * SIZE) / 100)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, C]."""
        return nn.functional.linear(images.flatten(1), self.weight)


def build_flat(num_classes: int) -> nn.Module:
    return FlatNet(num_classes)


def _images(per_class: int, seed: int) -> ImageSet:
    """Noise with one brighter channel: learnable in a few steps, not in none."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES)), per_class).astype(np.int64)
    images = random.integers(0, 120, (len(labels), SIZE, SIZE, 3))
    images[np.arange(len(labels)), :, :, labels] += random.integers(0, 120, (len(labels), SIZE, SIZE))
    return ImageSet(images.astype(np.uint8), labels)


def dataset() -> Dataset:
    return Dataset(
        name="tiny",
        classes=CLASSES,
        mean=(0.3, 0.3, 0.3),
        std=(0.2, 0.2, 0.2),
        train=_images(24, 0),
        test=_images(10, 1),
        sha256="tiny",
    )


RECIPE = {
    "data": "tiny:dataset",
    "teacher": "tiny:build_wide",
    "assistant": "tiny:build",
    "student": "tiny:build",
    "image_size": SIZE,
    "threads": 1,
    "cache_gib": 0.0,
    "device": "cpu",
    "training": {"epochs": 2, "batch_size": 16, "precision": "float32"},
    "augment": {"crop_padding": 2},
    "optimizer": {"learning_rate": 0.05},
}
