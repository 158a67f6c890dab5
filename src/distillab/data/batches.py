"""Batches to train and to evaluate with. The images lie on the device; order and changes are arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distillab.data.augment import augment, mix, unit_images
from distillab.data.batch import UNCHANGED, Batch
from distillab.data.config import AugmentConfig
from distillab.data.hashing import Stream, draws
from distillab.data.loader import LoaderBatches
from distillab.errors import ConfigError, DataError

__all__ = ["Batch", "EvaluationBatches", "LoaderBatches", "TrainingBatches", "on_device"]


class TrainingBatches:
    """Batches of one training set: shuffled, augmented, of one static size.

    Batch `step` of epoch `epoch` is a pure function of (seed, epoch, step): a run resumes exactly, a batch can be
    made again, and every model that is given it sees the same view. All images are put on the device once.

    Each epoch goes through the images once in an order of its own. The last, incomplete batch is dropped; a set that
    is smaller than a batch is one batch.

    Attributes:
        num_samples: Images in the set.
        batch_size: Images a batch.
        steps_per_epoch: Batches an epoch.

    Args:
        images: [M, H, H, 3] uint8. On a CPU memory is shared with the array; a tensor that is on the device already
            is shared too (`on_device`).
        labels: [M] integers, 0..C-1.
        indices: [K] rows of `images` that are the training set; None for all.
        batch_size: Images a batch.
        num_classes: C.
        augment: Random changes.
        label_smoothing: Share of each label that is spread evenly over all classes, 0..1.
        seed: Of order and augmentation.
        device: Where batches are made.
        image_size: Side S of the batches' images, in pixels.

    Raises:
        ConfigError: The batch size, padding or cutout does not fit.
        DataError: There are no images, or they do not fit on the device.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Tensor,
        labels: NDArray[np.int64] | Tensor,
        indices: NDArray[np.int64] | Tensor | None,
        *,
        batch_size: int,
        num_classes: int,
        augment: AugmentConfig,
        label_smoothing: float,
        seed: int,
        device: torch.device,
        image_size: int,
    ) -> None:
        self._images = on_device(images, device)
        _check_fit(augment, stored_size=self._images.shape[1], image_size=image_size)
        self._rows = _rows(indices, len(self._images), device)
        self.num_samples = len(self._rows)
        self.batch_size = _batch_size(batch_size, self.num_samples)
        self.steps_per_epoch = self.num_samples // self.batch_size
        self._augment = augment
        self._seed = seed
        self._image_size = image_size
        self._labels = on_device(labels, device).to(torch.int64)
        self._num_classes = num_classes
        self._label_smoothing = label_smoothing

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: Its number, which is also the view.
            start_step: Leave out so many batches at the beginning.
        """
        order = self._order(epoch)
        for step in range(start_step, self.steps_per_epoch):
            yield self._batch(order, epoch, step)

    def replay(self, epoch: int, step: int) -> Batch:
        """One batch again, by its number.

        Args:
            epoch: Number of the epoch.
            step: Position in it, 0..steps_per_epoch-1.

        Raises:
            IndexError: The epoch has no such step.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        return self._batch(self._order(epoch), epoch, step)

    def _order(self, epoch: int) -> Tensor:
        # Hashes of different images differ (the hash is a bijection), so the order is the same on every device.
        return draws(self._seed, epoch, self._rows, Stream.ORDER).argsort()

    def _batch(self, order: Tensor, epoch: int, step: int) -> Batch:
        positions = order[step * self.batch_size : (step + 1) * self.batch_size]
        rows = self._rows[positions]
        config, seed, size = self._augment, self._seed, self._image_size
        labels = self._labels[rows]
        if config.mixup or config.cutmix:
            images, partners, share = mix(
                self._images, rows, self._rows, config=config, seed=seed, view=epoch, image_size=size
            )
            labels = torch.lerp(self._one_hot(self._labels[partners]), self._one_hot(labels), share[:, None])
        else:
            images = augment(self._images, rows, config=config, seed=seed, view=epoch, image_size=size)
        if self._label_smoothing:
            shares = labels if labels.is_floating_point() else self._one_hot(labels)
            labels = shares * (1.0 - self._label_smoothing) + self._label_smoothing / self._num_classes
        return Batch(images, labels, positions, epoch)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self._num_classes).to(torch.float32)


class EvaluationBatches:
    """Batches of one set as it is: in order, all images, no changes. It can be gone through again and again.

    Attributes:
        num_samples: Images in the set.

    Args:
        images: [M, H, H, 3] uint8, as for `TrainingBatches`.
        labels: [M] integers.
        indices: [K] rows that are the set, in this order; None for all.
        batch_size: Images a batch; the last one may have fewer.
        device: Where batches are made.
        image_size: Side S of the batches' images, in pixels.

    Raises:
        ConfigError: The batch size is below 1.
        DataError: There are no images, or they do not fit on the device.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Tensor,
        labels: NDArray[np.int64] | Tensor,
        indices: NDArray[np.int64] | Tensor | None = None,
        *,
        batch_size: int,
        device: torch.device,
        image_size: int,
    ) -> None:
        self._images = on_device(images, device)
        self._labels = on_device(labels, device).to(torch.int64)
        self._rows = _rows(indices, len(self._images), device)
        self.num_samples = len(self._rows)
        self._batch_size = _batch_size(batch_size, self.num_samples)
        self._image_size = image_size

    def __len__(self) -> int:
        return -(-self.num_samples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        positions = torch.arange(self.num_samples, device=self._rows.device)
        for start in range(0, self.num_samples, self._batch_size):
            part = slice(start, start + self._batch_size)
            rows = self._rows[part]
            images = unit_images(self._images[rows], self._image_size)
            yield Batch(images, self._labels[rows], positions[part], UNCHANGED)


def on_device(array: NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """An array as a contiguous tensor on a device; on a CPU it shares the array's memory.

    Args:
        array: Images or labels; a tensor that is there already is returned as it is.
        device: Where to.

    Raises:
        DataError: The device's memory is too small for it.
    """
    if isinstance(array, Tensor):
        tensor = array
    else:
        with warnings.catch_warnings():
            # Nothing writes to images or labels, so an array that may not be written can be shared.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(np.ascontiguousarray(array))
    try:
        return tensor.to(device).contiguous()
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{tensor.nbytes / 2**30:.1f} GiB of images do not fit on the device",
            where=str(device),
            hint="choose smaller images or fewer of them (split.train_limit), or --device cpu",
        ) from error


def _rows(indices: NDArray[np.int64] | Tensor | None, num_images: int, device: torch.device) -> Tensor:
    if indices is None:
        return torch.arange(num_images, device=device)
    return on_device(indices, device).to(torch.int64)


def _batch_size(wanted: int, num_samples: int) -> int:
    if wanted < 1:
        raise ConfigError(f"a batch of {wanted} images", where="training.batch_size", hint="take 1 or more")
    if not num_samples:
        raise DataError("there are no images to make batches of", where="indices", hint="check the split")
    return min(wanted, num_samples)


def _check_fit(config: AugmentConfig, *, stored_size: int, image_size: int) -> None:
    for name, pixels, size in (
        ("crop_padding", config.crop_padding, stored_size),
        ("cutout", config.cutout, image_size),
    ):
        if pixels >= size:
            raise ConfigError(
                f"{name} of {pixels} pixels leaves nothing of images of {size}",
                where=f"augment.{name}",
                hint=f"take less than {size}",
            )
