"""Statistics and the hash of images, exact however many there are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distillab.data.dataset import ImageSet, Triple

# Bounds the memory that a pass over memory-mapped images takes.
_BLOCK_BYTES = 1 << 24


def channel_statistics(images: NDArray[np.uint8]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel.

    They come from counts of the 256 values in whole numbers, so only the last division and root round.

    Args:
        images: [N, H, W, 3], N > 0.

    Returns:
        (mean, std) of the pixels divided by 255; population standard deviation, at least 1/255, so that
        dividing by that of a channel which never changes is safe.
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for block in _blocks(images):
        for channel in range(3):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    means, stds = [], []
    for of_channel in counts.tolist():
        number = sum(of_channel)
        total = sum(value * count for value, count in enumerate(of_channel))
        squares = sum(value * value * count for value, count in enumerate(of_channel))
        means.append(total / (255 * number))
        stds.append(max(math.sqrt((number * squares - total * total) / number**2), 1.0) / 255)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def content_sha256(classes: Sequence[str], train: ImageSet, test: ImageSet) -> str:
    """SHA-256 of class names, shapes, images and labels, as 64 hex digits.

    Args:
        classes: [C] names.
        train: Images to train with.
        test: Images to test with.
    """
    shapes = [list(part.images.shape) for part in (train, test)]
    digest = hashlib.sha256(json.dumps([list(classes), shapes]).encode())
    for part in (train, test):
        for block in _blocks(part.images):
            digest.update(np.ascontiguousarray(block).data)
        digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


def _blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    step = max(1, _BLOCK_BYTES // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        yield images[start : start + step]
