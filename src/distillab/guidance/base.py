"""What every source of guidance does."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from distillab.data.batch import Batch, TrainingSource
from distillab.models.features import ModelOutput


class Guidance(Protocol):
    """What guides a student, epoch by epoch. It does not learn from it."""

    @property
    def source(self) -> Hashable:
        """Who answers: of two with equal sources one can be asked for both."""

    @property
    def phase(self) -> Hashable:
        """What kind of work a call does now: when this changes, a recorded step has to be recorded again."""

    def begin_epoch(self, epoch: int, source: TrainingSource) -> None:
        """Make ready for the batches of an epoch.

        Args:
            epoch: Its number.
            source: Where its batches come from.
        """

    def __call__(self, batch: Batch) -> ModelOutput:
        """Constants: what it says of a batch. Nothing here waits for the device, and all of it can be recorded."""

    def end_epoch(self, left_out: Iterable[Batch]) -> None:
        """Complete what is kept of the view, after the epoch's last step and only then.

        Args:
            left_out: Batches of the images of this view that no step has shown; made only if they are gone through.
        """
