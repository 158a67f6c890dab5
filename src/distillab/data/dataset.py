"""What a data set is: images and labels to train and to test with, names of classes, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distillab.errors import DataError

# `distillab list` reads the catalog, which names these classes; it need not wait for numpy.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, in a fixed order.

    Attributes:
        images: [N, S, S, 3] uint8, RGB, 0..255; may be memory-mapped.
        labels: [N] int64, 0..C-1.

    Raises:
        DataError: Shape or type is another.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.images.shape
        if self.images.dtype != "uint8" or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise DataError(
                f"images are {self.images.dtype} of shape {list(shape)}",
                where="images",
                hint="uint8 of shape [N, S, S, 3] is needed: RGB, 0..255, square",
            )
        if self.labels.dtype != "int64" or self.labels.shape != shape[:1]:
            raise DataError(
                f"labels are {self.labels.dtype} of shape {list(self.labels.shape)} for {shape[0]} images",
                where="labels",
                hint='int64 of shape [N] is needed: labels.astype("int64")',
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images of {self.images.shape[1]} x {self.images.shape[1]})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train and to test with. Validation is cut from `train`; `test` is read once, at the end.

    Attributes:
        name: For people: a catalog's name, or a folder's.
        classes: [C] names; a label is a position in it.
        mean: Of each channel over the training images, 0..1.
        std: Standard deviation of each channel over the training images, in the same unit, > 0.
        train: Images to train with.
        test: Images to test with.
        sha256: Of all that decides a result: images, labels, class names.

    Raises:
        DataError: Labels without a class, fewer than two classes, a part without images, or parts that
            differ in image size.
    """

    name: str
    classes: tuple[str, ...]
    mean: Triple
    std: Triple
    train: ImageSet
    test: ImageSet
    sha256: str

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError("a classifier needs two classes or more", where=f"{self.name}: classes")
        for part, images in (("train", self.train), ("test", self.test)):
            where = f"{self.name}: {part}"
            if not len(images):
                raise DataError("there are no images", where=where)
            low, high = int(images.labels.min()), int(images.labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"labels run from {low} to {high}, but there are {self.num_classes} classes",
                    where=where,
                    hint=f"labels are whole numbers from 0 to {self.num_classes - 1}",
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"training images are {self.image_size} pixels wide, test images {self.test.images.shape[1]}",
                where=self.name,
                hint="resize both to one size",
            )

    @classmethod
    def from_arrays(cls, name: str, classes: tuple[str, ...], train: ImageSet, test: ImageSet) -> Dataset:
        """Make a data set of arrays: statistics and hash are computed from them.

        Args:
            name: For people.
            classes: [C] names of the classes.
            train: Images to train with.
            test: Images to test with.

        Raises:
            DataError: The parts do not make a data set.
        """
        from distillab.data.statistics import channel_statistics, content_sha256

        mean, std = channel_statistics(train.images)
        return cls(name, tuple(classes), mean, std, train, test, content_sha256(classes, train, test))

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Side of the stored images, in pixels."""
        return int(self.train.images.shape[1])
