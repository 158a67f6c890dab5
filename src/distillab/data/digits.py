"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import validation_split

IMAGE_SIZE = 32
# Fixed apart from every setting, so that all results on digits are on one test set.
_TEST_FRACTION = 0.2
_TEST_SEED = 0


def open_digits(**_: object) -> Dataset:
    """The 1,797 digits of scikit-learn, enlarged to 32 x 32 RGB.

    Images are 8 x 8 with values 0..16; they are scaled to 0..255 and enlarged bilinearly. A fifth of every
    digit is the test set, always the same one.

    Keywords that openers of other sets need are taken and not used.

    Source: Alpaydin, Kaynak 1998, "Optical recognition of handwritten digits", UCI; the test part, as
    distributed with scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = np.stack([_enlarged(one) for one in grey])
    images = np.repeat(large[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    train, test = validation_split(labels, fraction=_TEST_FRACTION, seed=_TEST_SEED)
    return Dataset.from_arrays(
        "digits",
        tuple(str(name) for name in digits.target_names),
        ImageSet(images[train], labels[train]),
        ImageSet(images[test], labels[test]),
    )


def _enlarged(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
