"""Distillab: knowledge distillation of image classifiers.

from distillab import build_model, distill, open_dataset, train

data = open_dataset("digits")
teacher = train(build_model("cnn8", num_classes=10), data, epochs=10).model
result = distill(teacher, build_model("cnn16", num_classes=10), data, method="mbd-soft", epochs=10)
print(result.test.top1)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names are resolved on first use: torch costs more than a second to import, and `--help` must not wait for it.
_HOMES = {
    "build_model": "distillab.models.catalog",
    "open_dataset": "distillab.data.catalog",
    "train": "distillab.api",
    "distill": "distillab.api",
    "evaluate": "distillab.api",
    "load_model": "distillab.models.weights",
    "save_weights": "distillab.models.weights",
    "cross_entropy_loss": "distillab.methods.cross_entropy",
    "soft_target_loss": "distillab.methods.soft_target",
    "merit_based_loss": "distillab.methods.merit_based",
    "merit_weights": "distillab.methods.merit_based",
    "hint_loss": "distillab.methods.hint",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'distillab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
