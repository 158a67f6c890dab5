"""A frozen teacher that is run on every batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import nn

from distillab.data.batch import Batch, TrainingSource
from distillab.models.features import ModelOutput, forward_features
from distillab.runtime.device import Compute


class LiveTeacher:
    """What a teacher says of a batch. It is held outside every module that trains, so `.train()` never reaches it.

    Args:
        model: The teacher; set to evaluation, its parameters frozen.
        layers: Names of layers whose features are wanted.
        stop: Run only up to those layers; there are no logits then.
        compute: Precision and device.
    """

    def __init__(self, model: nn.Module, *, layers: Sequence[str] = (), stop: bool = False, compute: Compute) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layers = tuple(layers)
        self.stop = stop
        self.compute = compute

    @property
    def source(self) -> Hashable:
        """The model: students that want other layers of it can share one pass."""
        return self.model

    @property
    def phase(self) -> Hashable:
        """Always the same."""
        return "live"

    def begin_epoch(self, epoch: int, source: TrainingSource) -> None:
        """Nothing is to be made ready."""

    # Not inference_mode: its tensors cannot be saved for the student's backward pass.
    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """Constants: logits [N, C] (none where it stops before them) and features."""
        with self.compute.autocast():
            return forward_features(self.model, batch.images, self.layers, stop=self.stop)

    def end_epoch(self, left_out: Iterable[Batch]) -> None:
        """Nothing is kept."""
