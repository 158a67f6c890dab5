"""Caches of logits, their keys and tables, as tests use them."""

from __future__ import annotations

from dataclasses import replace

import torch

from distillab.data.config import AugmentConfig
from distillab.guidance.cache import CacheKey, LogitsCache
from distillab.runtime.device import Compute

CPU = Compute(torch.device("cpu"), None)
PLENTY = 2**30
KEY = CacheKey(
    teacher="t" * 64,
    data="d" * 64,
    images="train",
    num_samples=7,
    num_classes=3,
    image_size=16,
    compute=CPU,
    augment=AugmentConfig(crop_padding=2),
    seed=5,
)
PLAIN = replace(KEY, augment=AugmentConfig())


def table(seed=0, dtype=torch.float32, shape=(7, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Told(list):
    """An observer that remembers the notes."""

    def __call__(self, event):
        self.append(event.text)


def opened(folder, told=None, limit_bytes=PLENTY):
    return LogitsCache(folder, limit_bytes=limit_bytes, observer=Told() if told is None else told)


def stored(folder, key=KEY, view=4):
    """A cache's file of a table."""
    opened(folder).store(key, view, table())
    return folder / key.sha256 / f"view-{view}.safetensors"
