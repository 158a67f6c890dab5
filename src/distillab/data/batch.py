"""What every source of batches gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

UNCHANGED = -1
"""The view of images as they are, without augmentation."""


@dataclass(frozen=True)
class Batch:
    """Some images with their labels.

    Attributes:
        images: [N, 3, S, S] float32, 0..1 (a model normalises by itself), channels last in memory.
        labels: [N] int64, or [N, C] float32 probabilities.
        indices: [N] int64, positions in the training (or evaluated) set, 0..num_samples-1; None where a user's
            loader does not tell.
        view: Which augmentation: an epoch's number, or `UNCHANGED`.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None
    view: int
