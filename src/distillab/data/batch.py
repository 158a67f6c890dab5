"""What every source of batches gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

UNCHANGED = -1
"""The view of images as they are, without augmentation."""

Raw = tuple[Tensor, ...]
"""What differs from one batch to the next, on the device: all else that a batch is made of stays the same."""


@dataclass(frozen=True)
class Batch:
    """Some images with their labels.

    Attributes:
        images: [N, 3, S, S] float32, 0..1 (a model normalises by itself), channels last in memory.
        labels: [N] int64, or [N, C] float32 probabilities.
        indices: [N] int64, positions in the training (or evaluated) set, 0..num_samples-1; None where a user's
            loader does not tell.
        view: Which augmentation: an epoch's number (the remainder, where the number of views is limited), or
            `UNCHANGED`. A [] int64 tensor on the device where a captured graph makes the batch.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None
    view: int | Tensor


class TrainingSource(Protocol):
    """Batches to train with, in two parts: what differs from step to step, and a function that makes a batch of it."""

    @property
    def num_samples(self) -> int | None:
        """Images in the set; None where it is not known."""

    @property
    def batch_size(self) -> int | None:
        """Images a batch; None where it is not known."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""

    def view_of(self, epoch: int) -> int:
        """Which augmentation an epoch shows."""

    def raw(self, epoch: int, *, start_step: int = 0) -> Iterator[Raw]:
        """What `make` takes, for each step from `start_step` on."""

    def make(self, raw: Raw, view: int | Tensor) -> Batch:
        """The batch: a device function of its arguments that a CUDA graph can hold."""

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch: `make` of each `raw`."""

    def left_out(self, epoch: int, *, seen_from_step: int = 0) -> Iterator[Batch]:
        """This view of the images that the epoch's steps from `seen_from_step` on do not show."""
