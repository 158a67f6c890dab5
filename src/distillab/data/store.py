"""Decoded images kept on disk as one array file, memory-mapped, beside a manifest that says what they are."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat

from distillab.data.dataset import Dataset, ImageSet
from distillab.data.statistics import channel_statistics, content_sha256
from distillab.errors import CheckpointError, DataError
from distillab.runtime.events import Note, Observer
from distillab.runtime.files import read_json_object, replacing, storage_error, write_text

_FORMAT = 1

_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Recorded(BaseModel):
    """What a manifest says of the arrays beside it."""

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]
    sha256: str


Fill = Callable[[NDArray[np.uint8], NDArray[np.int64]], None]


@dataclass(frozen=True)
class Source:
    """Where a data set's images come from, and how they become arrays.

    Attributes:
        name: The data set's.
        classes: [C] names of the classes.
        image_size: Side S of the decoded images, in pixels.
        num_train: Images to train with; they stand first in the arrays.
        num_test: Images to test with.
        origin: Plain JSON values that change whenever the images would: stored arrays hold as long as it is
            the same.
        fill: Writes all images [N, S, S, 3] and labels [N] into the two arrays that it is given.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    num_train: int
    num_test: int
    origin: dict[str, Any]
    fill: Fill

    def description(self) -> dict[str, Any]:
        """What a manifest must say for its arrays to be this source's."""
        return {
            "format": _FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "num_train": self.num_train,
            "num_test": self.num_test,
            "origin": self.origin,
        }


def open_stored(folder: Path, source: Source, *, observer: Observer) -> Dataset:
    """Open a data set from its stored arrays; decode and store them first where that is due.

    That is when there are none, when `source` changed, or when the arrays do not have the hash that the manifest
    recorded. Of processes that open one folder at once, one decodes and the others wait.

    Args:
        folder: Holds images.npy, labels.npy and manifest.json; a lock file stands beside it.
        source: Where the images come from.
        observer: Is told when and why images are decoded.

    Returns:
        The data set; its images are memory-mapped.

    Raises:
        DataError: The source's images cannot be read; no array or manifest of it is left behind.
        StorageError: The folder cannot be written.
    """
    # Without the lock first: stored arrays open from a folder that may only be read.
    with contextlib.suppress(_UnusableError):
        return _load(folder, source)
    with _locked(folder):
        try:
            return _load(folder, source)
        except _UnusableError as reason:
            total = source.num_train + source.num_test
            observer(Note(f"{source.name}: storing {total:,} images in {folder} ({reason.message})"))
        _build(folder, source)
        return _load(folder, source)


class _UnusableError(DataError):
    """Stored arrays that are missing, outdated or damaged."""


def _load(folder: Path, source: Source) -> Dataset:
    paths = [folder / name for name in ("manifest.json", "images.npy", "labels.npy")]
    try:
        if not all(stat.S_ISREG(path.stat().st_mode) for path in paths):  # to read a pipe is to wait for ever
            raise _UnusableError("there are other things than stored arrays", where=str(folder))
        manifest = read_json_object(paths[0])
        recorded = _Recorded.model_validate({key: manifest.pop(key, None) for key in _Recorded.model_fields})
    except FileNotFoundError:
        raise _UnusableError("done once", where=str(folder)) from None
    except (CheckpointError, OSError, ValueError):
        raise _UnusableError("the stored manifest is unreadable", where=str(folder)) from None
    if manifest != source.description():
        raise _UnusableError("the source changed since it was stored", where=str(folder))
    try:
        # Copy-on-write: tensors can share the memory, and nothing that writes to them reaches the file. Mapped, an
        # array cannot be larger than its file, nor hold objects.
        images, labels = (np.lib.format.open_memmap(path, mode="c") for path in paths[1:])
        train = ImageSet(images[: source.num_train], labels[: source.num_train])
        test = ImageSet(images[source.num_train :], labels[source.num_train :])
    except Exception:  # an altered array fails in any way it likes
        raise _UnusableError("the stored arrays are damaged", where=str(folder)) from None
    if content_sha256(source.classes, train, test) != recorded.sha256:
        raise _UnusableError("the stored arrays are damaged", where=str(folder))
    return Dataset(source.name, source.classes, recorded.mean, recorded.std, train, test, recorded.sha256)


def _build(folder: Path, source: Source) -> None:
    total, side = source.num_train + source.num_test, source.image_size
    labels = np.empty(total, dtype=np.int64)
    with replacing(folder / "images.npy") as images_path:
        images = np.lib.format.open_memmap(images_path, mode="w+", dtype=np.uint8, shape=(total, side, side, 3))
        _reserve(images_path)
        source.fill(images, labels)
        train = ImageSet(images[: source.num_train], labels[: source.num_train])
        test = ImageSet(images[source.num_train :], labels[source.num_train :])
        mean, std = channel_statistics(train.images)
        sha256 = content_sha256(source.classes, train, test)
        images.flush()
    with replacing(folder / "labels.npy") as labels_path, labels_path.open("wb") as stream:
        np.save(stream, labels)
    # Last, since it vouches for the others.
    manifest = {**source.description(), "mean": mean, "std": std, "sha256": sha256}
    write_text(folder / "manifest.json", json.dumps(manifest) + "\n")


def _reserve(path: Path) -> None:
    # Writing through a map of a file with holes kills the process when the disk is full; this fails with an error.
    if hasattr(os, "posix_fallocate"):  # Linux; elsewhere a full disk is found out the hard way
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder.parent / f".{folder.name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        yield
    finally:
        lock.release()
