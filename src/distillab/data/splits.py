"""Which images train and which are held out: a pure function of labels and seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distillab.data.hashing import Stream, draws
from distillab.errors import ConfigError


def validation_split(
    labels: ArrayLike, *, fraction: float, seed: int, limit: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the images that train, and of those held out, class by class.

    Within each class images are ranked by a hash of (seed, position); the first round(fraction * n) of them are
    held out (halves round up; of two images or more at least one is held out and one trains). The result
    depends on no generator and no library's version.

    Args:
        labels: [N] whole numbers.
        fraction: Share that is held out, 0 <= fraction < 1.
        seed: Of the split, not of the run: runs with other seeds share one split.
        limit: Keep only so many of the images that train, the same share of every class (and at least one
            of each, while `limit` allows); a smaller limit keeps a subset of what a larger one keeps.

    Returns:
        (train, held out), both [.] int64 in rising order; those held out do not depend on `limit`.

    Raises:
        ConfigError: `fraction` or `limit` is out of bounds.
    """
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"the held-out share is {fraction}", where="fraction", hint="take 0 <= fraction < 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit is {limit}", where="limit", hint="keep one image or more, or leave it out")
    _, of_class, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    ranks = _ranks(of_class, counts, seed)
    held = np.floor(fraction * counts + 0.5).astype(np.int64)
    if fraction > 0.0:
        held = np.minimum(np.maximum(held, 1), counts - 1)
    is_held = ranks < held[of_class]
    train = np.flatnonzero(~is_held)
    if limit is not None and limit < len(train):
        # Every class's images, evenly spread over 0..1 by rank: a prefix has the same share of each.
        place = (ranks - held[of_class]) / (counts - held)[of_class]
        chosen = np.lexsort((of_class[train], place[train]))[:limit]
        train = np.sort(train[chosen])
    return train, np.flatnonzero(is_held)


def _ranks(of_class: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Rank of each image among those of its class, in the order of their hashes."""
    hashes = draws(seed, 0, torch.arange(len(of_class)), Stream.SPLIT).numpy()
    order = np.lexsort((hashes, of_class))
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(of_class), dtype=np.int64)
    ranks[order] = np.arange(len(of_class)) - starts[of_class[order]]
    return ranks


def evenly_spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Some of these rows from their whole length: images may be sorted by class, and the first ones of one class only.

    Args:
        rows: [n] positions.
        most: How many at most.

    Returns:
        [min(n, most)] of them in their order.
    """
    count = min(len(rows), most)
    return rows[np.arange(count) * len(rows) // max(1, count)]
