"""Batches of a user's own loader, behind the interface of ours."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from distillab.data.batch import UNCHANGED, Batch, Raw
from distillab.errors import DataError, ShapeError
from distillab.runtime.reproducibility import seeded


class LoaderBatches:
    """A loader's batches, to train or to evaluate with.

    Order and augmentation are the loader's own: a run resumes by skipping batches, and comes out the same only if the
    loader gives the same ones again. `set_epoch` of the loader, its sampler and its batch sampler is called where
    there is one. What the loader draws from torch's global CPU generator (the order of a shuffling DataLoader without
    a generator of its own, its workers' seeds, transforms) depends on (seed, epoch, step) alone, and the caller's
    state of that generator stays as it is.

    Attributes:
        num_samples: Images in the set (`len(loader.dataset)`); None where the loader has no `dataset`.
        batch_size: Images a batch (`loader.batch_size`), the last of an epoch may have fewer; None where the loader
            does not tell.
        steps_per_epoch: `len(loader)`.

    Args:
        loader: Can be gone through again and again, has a length, and gives `Batch`, (images, labels) or (images,
            labels, indices): images [N, 3, S, S], float 0..1 or uint8 0..255; labels [N] integers or [N, C]
            probabilities; indices [N] integers.
        device: Where batches are moved to.
        seed: Of what the loader draws from torch's global CPU generator.
        num_classes: C, which labels are held against; None where it is not known.

    Raises:
        DataError: The loader has no length, or none but zero.
    """

    def __init__(self, loader: Any, *, device: torch.device, seed: int = 0, num_classes: int | None = None) -> None:
        try:
            self.steps_per_epoch = len(loader)
        except TypeError:
            raise DataError(
                f"{type(loader).__name__} has no length", where="loader", hint="give it __len__: batches an epoch"
            ) from None
        if not self.steps_per_epoch:
            raise DataError("the loader has no batches", where="loader", hint="is its batch larger than its data?")
        try:
            self.num_samples: int | None = len(loader.dataset)
        except (AttributeError, TypeError):
            self.num_samples = None
        self.batch_size: int | None = getattr(loader, "batch_size", None)
        self._loader = loader
        self._device = device
        self._seed = seed
        self._num_classes = num_classes
        self._is_checked = False

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self._made(self._raws(UNCHANGED), UNCHANGED)

    def view_of(self, epoch: int) -> int:
        """The epoch itself: how images are augmented is the loader's own affair."""
        return epoch

    def raw(self, epoch: int, *, start_step: int = 0) -> Iterator[Raw]:
        """What `make` takes, for each step of an epoch, on the device.

        Args:
            epoch: Its number.
            start_step: Skip so many batches at the beginning; the loader makes them all the same.

        Returns:
            (images, labels) or (images, labels, indices), of the types that the loader gives.

        Raises:
            ShapeError: The first batch's images, labels or indices have a shape that does not work.
            DataError: They are of a type, or in a range, that does not work; or a later label is not in 0..C-1 (labels
                that lie on an accelerator are looked at in the first batch only).
        """
        for owner in (
            self._loader,
            getattr(self._loader, "sampler", None),
            getattr(self._loader, "batch_sampler", None),
        ):
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        return self._raws(epoch, start_step)

    def make(self, raw: Raw, view: int | Tensor) -> Batch:
        """The batch: a device function of its arguments that a CUDA graph can hold.

        Args:
            raw: One of `raw`.
            view: An epoch's number; it changes nothing but the batch's own.
        """
        images, labels, *indices = raw
        images = images / 255.0 if images.dtype == torch.uint8 else images.to(torch.float32)
        labels = labels.to(torch.float32 if labels.is_floating_point() else torch.int64)
        positions = indices[0].to(torch.int64) if indices else None
        return Batch(images.contiguous(memory_format=torch.channels_last), labels, positions, view)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch: `make` of each `raw`.

        Args:
            epoch: Its number, which is also the view.
            start_step: Skip so many batches at the beginning; the loader makes them all the same.
        """
        return self._made(self.raw(epoch, start_step=start_step), epoch)

    def left_out(self, epoch: int, *, seen_from_step: int = 0) -> Iterator[Batch]:
        """Nothing: which images a loader leaves out it does not tell."""
        return iter(())

    def _made(self, raws: Iterable[Raw], view: int) -> Iterator[Batch]:
        return (self.make(raw, view) for raw in raws)

    def _raws(self, view: int, start_step: int = 0) -> Iterator[Raw]:
        return (self._raw(item) for item in itertools.islice(self._items(view), start_step, None))

    def _items(self, view: int) -> Iterator[Any]:
        """What the loader gives; the caller goes on outside of the seeded regions."""
        items: Iterator[Any] | None = None
        for step in itertools.count():
            # The iterator is made in the first step's region: samplers draw when first asked, and workers ask at once.
            with seeded(self._seed, "loader", view, step):
                items = iter(self._loader) if items is None else items
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _raw(self, item: Any) -> Raw:
        images, labels, indices = _parts(item)
        if not self._is_checked:
            # Once, before anything is moved: later ones would make the device wait.
            _check_images(images)
            _check_labels(labels, images)
            _check_indices(indices, images)
        if not self._is_checked or labels.device.type == "cpu":
            _check_classes(labels, self._num_classes)
        self._is_checked = True
        there = images, labels, *(() if indices is None else (indices,))
        moved = tuple(part.to(self._device, non_blocking=True) for part in there)
        if self._device.type == "cuda":
            # What is there already may be a buffer that the loader fills again, while steps are a batch behind.
            moved = tuple(new.clone() if new is old else new for new, old in zip(moved, there, strict=True))
        return moved


def _parts(item: Any) -> tuple[Any, Any, Any]:
    if isinstance(item, Batch):
        return item.images, item.labels, item.indices
    if isinstance(item, (tuple, list)) and len(item) in (2, 3):
        return (*item, None) if len(item) == 2 else tuple(item)
    size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise DataError(
        f"the loader gives a {type(item).__name__}{size}",
        where="loader",
        hint="give (images, labels) or (images, labels, indices)",
    )


def _check_images(images: Any) -> None:
    where = "loader: images"
    if not isinstance(images, Tensor):
        raise DataError(f"images are a {type(images).__name__}", where=where, hint="give a torch.Tensor")
    shape = list(images.shape)
    if len(shape) != 4 or shape[1] != 3:
        is_last = len(shape) == 4 and shape[3] == 3
        hint = "images.permute(0, 3, 1, 2)" if is_last else "greyscale: images.expand(-1, 3, -1, -1)"
        raise ShapeError(f"images have shape {shape}, not [N, 3, H, W]", where=where, hint=hint)
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}", where=where, hint="give float 0..1 or uint8 0..255")
    low, high = (value.item() for value in images.aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(
            f"images run from {low:.3g} to {high:.3g}",
            where=where,
            hint="give 0..1, not normalised: a model's first layer does that",
        )


def _check_labels(labels: Any, images: Tensor) -> None:
    where = "loader: labels"
    if not isinstance(labels, Tensor):
        raise DataError(f"labels are a {type(labels).__name__}", where=where, hint="give a torch.Tensor")
    wanted = 2 if labels.is_floating_point() else 1
    if labels.ndim != wanted or len(labels) != len(images):
        raise ShapeError(
            f"labels have shape {list(labels.shape)} for {len(images)} images",
            where=where,
            hint="give integers [N] or probabilities [N, C]",
        )


def _check_classes(labels: Tensor, num_classes: int | None) -> None:
    where = "loader: labels"
    low, high = (value.item() for value in labels.aminmax())
    if low < 0:
        raise DataError(f"the smallest label is {low}", where=where, hint="labels start at 0")
    if num_classes is None:
        return
    if labels.is_floating_point():
        if labels.shape[1] != num_classes:
            raise ShapeError(
                f"labels have shape {list(labels.shape)} for {num_classes} classes",
                where=where,
                hint="give as many probabilities as the models give logits",
            )
    elif high >= num_classes:
        raise DataError(
            f"the largest label is {high}, the models know 0 to {num_classes - 1}",
            where=where,
            hint="give models of as many classes as the data has",
        )


def _check_indices(indices: Any, images: Tensor) -> None:
    if indices is None:
        return
    where = "loader: indices"
    if not isinstance(indices, Tensor) or indices.is_floating_point():
        raise DataError("indices are not whole numbers in a tensor", where=where, hint="give a tensor of int64")
    if indices.shape != images.shape[:1]:
        raise ShapeError(f"indices have shape {list(indices.shape)} for {len(images)} images", where=where)
