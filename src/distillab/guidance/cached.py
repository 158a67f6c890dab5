"""A frozen teacher that is run once a view, whose logits are read from then on."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import Literal

import torch
from torch import Tensor

from distillab.data.batch import Batch, TrainingSource
from distillab.errors import ConfigError, DataError
from distillab.guidance.cache import CacheKey, LogitsCache
from distillab.guidance.live import LiveTeacher
from distillab.models.features import ModelOutput
from distillab.runtime.events import Note

_SHARE_OF_MEMORY = 1 / 4


def with_cache(live: LiveTeacher, cache: LogitsCache, key: CacheKey) -> CachedTeacher | LiveTeacher:
    """A teacher with its logits cached, or without where they are too many.

    Args:
        live: The teacher; its features cannot be cached.
        cache: Holds tables of any number of teachers.
        key: Of this teacher and the images that it will see.

    Returns:
        `live` itself, of which the cache's observer is told, where the table of one view would take more than a
        quarter of the device's memory.

    Raises:
        ConfigError: Features are wanted of it.
    """
    needed = key.num_samples * key.num_classes * torch.float32.itemsize
    room = _SHARE_OF_MEMORY * _memory_bytes(live.compute.device)
    if needed <= room:
        return CachedTeacher(live, cache, key)
    cache.observer(
        Note(
            f"the teacher's logits are not cached: a table of {key.num_samples:,} x {key.num_classes:,} takes "
            f"{needed / 2**30:.1f} GiB, more than a quarter of the memory of {live.compute.device}"
        )
    )
    return live


class CachedTeacher:
    """A teacher whose logits of a view are read from a table, once it has been run on all images of the view.

    In an epoch whose view is not known ("filling") the live teacher answers, and its answers are put in the table;
    images that the epoch leaves out are asked for at its end. Otherwise ("reading") the table answers and the teacher
    is not run. Where nothing is augmented all epochs are of one view.

    For the batches that filled the table its answers are the live teacher's to the last bit. In a batch of another
    composition the live teacher would round otherwise.

    Attributes:
        live: The teacher.
        phase: "filling" or "reading".

    Args:
        live: The teacher; its features cannot be cached.
        cache: Holds tables of any number of teachers.
        key: Of this teacher and the images that it will see.

    Raises:
        ConfigError: Features are wanted of it.
    """

    def __init__(self, live: LiveTeacher, cache: LogitsCache, key: CacheKey) -> None:
        if live.layers:
            raise ConfigError("only logits are cached, not features", where="guidance", hint="use the live teacher")
        self.live = live
        self.phase: Literal["filling", "reading"] = "filling"
        self._cache = cache
        self._key = key
        self._device = live.compute.device
        # [M, C], allocated once, when the type of the logits is known: recorded steps hold its address.
        self._table: Tensor | None = None
        self._shown = torch.zeros(key.num_samples, dtype=torch.bool, device=self._device)
        self._view = 0
        self._complete: int | None = None  # the view whose logits are all in the table

    @property
    def source(self) -> Hashable:
        """The key: teachers with equal keys give equal answers."""
        return self._key.sha256

    def begin_epoch(self, epoch: int, source: TrainingSource) -> None:
        """Read the table of the epoch's view if there is one, else start filling it.

        Args:
            epoch: Its number.
            source: Where its batches come from.

        Raises:
            DataError: The batches do not say which images they hold, or are not all.
        """
        self._view = source.view_of(epoch) if self._key.augmented else 0
        if self._view != self._complete:
            self._complete = self._view if self._load() else None
        self._shown.zero_()
        self.phase = "filling" if self._complete is None else "reading"
        # The first epoch that shows a view has the view's number. Where that one is over, the table was lost (with
        # another process, or from a cache that is full) or not wanted then (by a student in an earlier stage). It is
        # filled from that epoch's batches all the same: of others the answers would be rounded otherwise.
        if self.phase == "filling" and epoch != self._view:
            for batch in source.epoch(self._view):
                self.keep(batch, self.live(batch))
            self.end_epoch(source.left_out(self._view))
            self.phase = "reading"

    def __call__(self, batch: Batch) -> ModelOutput:
        """Constants: logits [N, C].

        Raises:
            DataError: The batch does not say which images it holds.
        """
        if self.phase == "filling":
            return self.keep(batch, self.live(batch))
        assert self._table is not None
        return ModelOutput(self._table.index_select(0, _indices(batch)))

    def keep(self, batch: Batch, answer: ModelOutput) -> ModelOutput:
        """Put what the live teacher says of a batch in the table.

        Args:
            batch: Of the view that is being filled.
            answer: Logits, and perhaps features that others want.

        Returns:
            The logits alone.

        Raises:
            DataError: The batch does not say which images it holds.
        """
        indices = _indices(batch)
        assert answer.logits is not None
        if self._table is None:
            shape = (self._key.num_samples, self._key.num_classes)
            self._table = torch.empty(shape, dtype=answer.logits.dtype, device=self._device)
        self._table.index_copy_(0, indices, answer.logits)
        self._shown.index_fill_(0, indices, True)
        return ModelOutput(answer.logits)

    def end_epoch(self, left_out: Iterable[Batch]) -> None:
        """Store the view's table, if it was filled.

        Args:
            left_out: Batches of the images of this view that no step has shown.

        Raises:
            DataError: Together with the epoch's batches they are not all images.
        """
        if self.phase == "reading":
            return
        for batch in left_out:
            self(batch)
        shown = int(self._shown.sum())
        if self._table is None or shown < self._key.num_samples:
            raise DataError(
                f"the epoch's batches held {shown:,} of {self._key.num_samples:,} images",
                where="the cache of the teacher's logits",
                hint="give those that were left out, or use the live teacher",
            )
        self._cache.store(self._key, self._view, self._table)
        self._complete = self._view

    def _load(self) -> bool:
        """Fill the table from the cache; False where it does not know the view."""
        stored = self._cache.find(self._key, self._view, dtype=None if self._table is None else self._table.dtype)
        if stored is None:
            return False
        if self._table is None:
            self._table = torch.empty_like(stored, device=self._device)
        if self._device.type == "cuda":
            stored = stored.pin_memory()  # the copy then joins the device's queue, and nobody waits for it
        self._table.copy_(stored, non_blocking=True)
        return True


def _indices(batch: Batch) -> Tensor:
    if batch.indices is None:
        raise DataError(
            "logits are cached by image, and these batches do not tell which images they hold",
            where="indices",
            hint="use the live teacher",
        )
    return batch.indices


def _memory_bytes(device: torch.device) -> int:
    """Size of the memory that a device works in."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
