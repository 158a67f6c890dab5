"""A frozen teacher that is run on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from distillab.data.batches import Batch
from distillab.models.features import ModelOutput, forward_features
from distillab.runtime.device import Compute

Guidance = Callable[[Batch, int], ModelOutput]
"""What guides a student: (batch, its number within the epoch) -> constants."""


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

    # Not inference_mode: its tensors cannot be saved for the student's backward pass.
    @torch.no_grad()
    def __call__(self, batch: Batch, step: int) -> ModelOutput:
        """Constants: logits [N, C] and features. `step` makes no difference to a live teacher."""
        with self.compute.autocast():
            return forward_features(self.model, batch.images, self.layers, stop=self.stop)
