"""What a model says of a batch: logits, and the features of named layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ModelOutput:
    """Logits and tapped features of one batch.

    Attributes:
        logits: [N, C] raw scores; None where the forward pass stopped at a layer before them.
        features: layer name -> [N, D, H, W] (or [N, D]) activations.
    """

    logits: Tensor | None
    features: dict[str, Tensor] = field(default_factory=dict)
