"""Batches to train and to evaluate with, made on the device; order and changes are arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillab.data.augment import Augmentation, unit_images
from distillab.data.batch import UNCHANGED, Batch, Raw
from distillab.data.config import AugmentConfig
from distillab.data.hashing import Stream, draws
from distillab.data.loader import LoaderBatches
from distillab.data.streaming import ResidentImages, StreamedImages, on_device
from distillab.errors import ConfigError, DataError

__all__ = ["Batch", "EvaluationBatches", "LoaderBatches", "StreamedImages", "TrainingBatches", "on_device"]

_PIXELS_A_BATCH = {"cuda": 1 << 22, "cpu": 1 << 19}
_FEWEST_A_BATCH = 64


class TrainingBatches:
    """Batches of one training set: shuffled, augmented, of one static size.

    Batch `step` of epoch `epoch` is a pure function of (seed, epoch, step): a run resumes exactly, a batch can be
    made again, and every model that is given it sees the same view. Whether the images lie on the device or are
    streamed to it makes no difference to any batch.

    Each epoch goes through the images once in an order of its own. The last, incomplete batch is dropped; a set that
    is smaller than a batch is one batch.

    Attributes:
        num_samples: Images in the set.
        batch_size: Images a batch.
        steps_per_epoch: Batches an epoch.

    Args:
        images: [M, H, H, 3] uint8, which are put on the device, all at once (`on_device`: what is there already is
            shared); or images that are streamed.
        labels: [M] integers, 0..C-1.
        indices: [K] rows of `images` that are the training set; None for all.
        batch_size: Images a batch.
        num_classes: C.
        augment: Random changes.
        label_smoothing: Share of each label that is spread evenly over all classes, 0..1.
        seed: Of order and augmentation.
        device: Where batches are made.
        image_size: Side S of the batches' images, in pixels.
        views: How many different augmentations of each image there are, shown in turn, one an epoch; None for as
            many as epochs.

    Raises:
        ConfigError: The batch size, number of views, padding or cutout does not fit.
        DataError: There are no images, or they do not fit on the device.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Tensor | StreamedImages,
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
        views: int | None = None,
    ) -> None:
        self._images = images if isinstance(images, StreamedImages) else ResidentImages(images, device)
        _check_fit(augment, stored_size=self._images.stored_size, image_size=image_size)
        if views is not None and views < 1:
            raise ConfigError(f"{views} views of an image", where="views", hint="take 1 or more")
        self._rows = _rows(indices, len(self._images), device)
        self._rows_at_home = self._rows.to(self._images.home)
        self.num_samples = len(self._rows)
        self.batch_size = _batch_size(batch_size, self.num_samples)
        self.steps_per_epoch = self.num_samples // self.batch_size
        self._augmentation = Augmentation(augment, seed=seed, image_size=image_size, device=device)
        self._seed = seed
        self._views = views
        self._device = device
        self._labels = on_device(labels, device).to(torch.int64)
        self._classes = torch.arange(num_classes, device=device)
        self._label_smoothing = label_smoothing

    def view_of(self, epoch: int) -> int:
        """Which augmentation an epoch shows: its number, or the remainder where the number of views is limited."""
        return epoch if self._views is None else epoch % self._views

    def raw(self, epoch: int, *, start_step: int = 0) -> Iterator[Raw]:
        """What `make` takes, for each step of an epoch, on the device.

        Args:
            epoch: Its number, which its order depends on.
            start_step: Leave out so many steps at the beginning.

        Returns:
            (positions [N] int64 in the training set,), where images are streamed with their pixels: uint8
            [N, H, H, 3], or [2N, H, H, 3] where they are mixed with partners.
        """
        order = self._order(epoch)[: self.steps_per_epoch * self.batch_size]
        return self._fetch(order[start_step * self.batch_size :], self.view_of(epoch))

    def make(self, raw: Raw, view: int | Tensor) -> Batch:
        """The batch: a device function of its arguments that a CUDA graph can hold.

        Args:
            raw: One of `raw` or of an epoch that has the same view.
            view: `view_of` the epoch; in a graph a [] int64 tensor on the device, which gives the same batch.
        """
        positions = raw[0]
        rows = self._rows[positions]
        shown = self._augmentation.with_partners(rows, self._rows, view)
        images = self._augmentation(self._images.pixels(raw, shown), shown, view)
        labels = self._labels[shown]
        if self._augmentation.mixes:
            images, share = self._augmentation.mix(images, rows, view)
            own, partners = self._one_hot(labels).chunk(2)
            labels = torch.lerp(partners, own, share[:, None])
        if self._label_smoothing:
            shares = labels if labels.is_floating_point() else self._one_hot(labels)
            labels = shares * (1.0 - self._label_smoothing) + self._label_smoothing / len(self._classes)
        return Batch(images, labels, positions, view)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: Its number.
            start_step: Leave out so many batches at the beginning.
        """
        return self._made(self.raw(epoch, start_step=start_step), epoch)

    def left_out(self, epoch: int, *, seen_from_step: int = 0) -> Iterator[Batch]:
        """This epoch's view of the images that its steps from `seen_from_step` on do not show.

        Those are the images of the incomplete batch that is dropped, and those of the steps before. The last batch
        may be smaller than the others.

        Args:
            epoch: Its number.
            seen_from_step: The first step that was taken.
        """
        order = self._order(epoch)
        before = order[: seen_from_step * self.batch_size]
        dropped = order[self.steps_per_epoch * self.batch_size :]
        return self._made(self._fetch(torch.cat([before, dropped]), self.view_of(epoch)), epoch)

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
        positions = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        (batch,) = self._made(self._fetch(positions, self.view_of(epoch)), epoch)
        return batch

    def _order(self, epoch: int) -> Tensor:
        # Hashes of different images differ (the hash is a bijection), so the order is the same on every device.
        return draws(self._seed, epoch, self._rows_at_home, Stream.ORDER).argsort()

    def _fetch(self, positions: Tensor, view: int) -> Iterator[Raw]:
        def rows_of(some: Tensor) -> Tensor:
            return self._augmentation.with_partners(self._rows_at_home[some], self._rows_at_home, view)

        return self._images.fetch(_pieces(positions, self.batch_size), rows_of, self._device)

    def _made(self, raws: Iterable[Raw], epoch: int) -> Iterator[Batch]:
        view = self.view_of(epoch)
        return (self.make(raw, view) for raw in raws)

    def _one_hot(self, labels: Tensor) -> Tensor:
        return (labels[:, None] == self._classes).to(torch.float32)


class EvaluationBatches:
    """Batches of one set as it is: in order, all images, no changes. It can be gone through again and again.

    Attributes:
        num_samples: Images in the set.
        batch_size: Images a batch.

    Args:
        images: [M, H, H, 3] uint8, as for `TrainingBatches`.
        labels: [M] integers.
        indices: [K] rows that are the set, in this order; None for all.
        batch_size: Images a batch; the last one may have fewer. None for as many as keep the device busy, in batches
            of nearly one size.
        device: Where batches are made.
        image_size: Side S of the batches' images, in pixels.

    Raises:
        ConfigError: The batch size is below 1.
        DataError: There are no images, or they do not fit on the device.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Tensor | StreamedImages,
        labels: NDArray[np.int64] | Tensor,
        indices: NDArray[np.int64] | Tensor | None = None,
        *,
        batch_size: int | None = None,
        device: torch.device,
        image_size: int,
    ) -> None:
        self._images = images if isinstance(images, StreamedImages) else ResidentImages(images, device)
        self._labels = on_device(labels, device).to(torch.int64)
        self._rows = _rows(indices, len(self._images), device)
        self._rows_at_home = self._rows.to(self._images.home)
        self.num_samples = len(self._rows)
        if batch_size is None:
            batch_size = _even_batch_size(self.num_samples, device, image_size)
        self.batch_size = _batch_size(batch_size, self.num_samples)
        self._device = device
        self._image_size = image_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for raw, count in self.raw():
            batch = self.make(raw)
            yield Batch(batch.images[:count], batch.labels[:count], raw[0][:count], UNCHANGED)

    def raw(self) -> Iterator[tuple[Raw, int]]:
        """What `make` takes for each batch, all of one size, and how many of its images count.

        The last batch is filled up with copies of the last image, which do not count.
        """
        padded = torch.arange(len(self) * self.batch_size, device=self._images.home).clamp_(max=self.num_samples - 1)
        pieces = _pieces(padded, self.batch_size)
        raws = self._images.fetch(pieces, lambda some: self._rows_at_home[some], self._device)
        for number, raw in enumerate(raws):
            yield raw, min(self.batch_size, self.num_samples - number * self.batch_size)

    def make(self, raw: Raw) -> Batch:
        """The batch, padding included: a device function of its argument that a CUDA graph can hold."""
        rows = self._rows[raw[0]]
        images = unit_images(self._images.pixels(raw, rows), self._image_size)
        return Batch(images, self._labels[rows], raw[0], UNCHANGED)


def _pieces(positions: Tensor, size: int) -> Iterator[Tensor]:
    return (positions[start : start + size] for start in range(0, len(positions), size))


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


def _even_batch_size(num_samples: int, device: torch.device, image_size: int) -> int:
    """The size that spreads images evenly over as few batches as the device does well."""
    pixels = _PIXELS_A_BATCH.get(device.type, _PIXELS_A_BATCH["cpu"])
    largest = max(_FEWEST_A_BATCH, pixels // image_size**2)
    num_batches = max(1, -(-num_samples // largest))
    return max(1, -(-num_samples // num_batches))


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
