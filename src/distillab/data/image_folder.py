"""Folders of images, one subfolder a class, decoded once."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillab.data.config import SplitConfig
from distillab.data.dataset import Dataset
from distillab.data.decoding import EXTENSIONS, decode_images, size_of
from distillab.data.splits import validation_split
from distillab.data.store import Source, open_stored
from distillab.errors import ConfigError, DataError
from distillab.runtime.events import Note, Observer

_LAYOUT = "train/ and test/ with one folder per class in each, or one folder per class"


@dataclass(frozen=True)
class ImageFile:
    """One file of a folder.

    Attributes:
        path: From the folder, with forward slashes.
        label: Position of its class.
        size_bytes: Its size.
        modified_ns: Time of its last change, nanoseconds.
    """

    path: str
    label: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        classes: Names of the class folders, sorted.
        train: Images to train with, sorted by path.
        test: Images to test with; empty where the folder has no part for that.
        ignored: Extension -> number of files that are no images.
        unused: Names of parts that are left alone: a val/ beside a test/.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    ignored: Counter[str]
    unused: tuple[str, ...]


def open_image_folder(
    folder: Path, *, data_dir: Path, image_size: int, split: SplitConfig, observer: Observer
) -> Dataset:
    """Open a folder of images; decode it first if that was not done, or if a file changed since.

    With train/ and test/ (or val/, where there is no test/) those are the parts. Otherwise `split.test_fraction` of
    each class is held out for the test, by `split.seed`.

    Args:
        folder: The folder.
        data_dir: Decoded images are kept in its image_folders/.
        image_size: Side that images are brought to (`decode_image`), in pixels.
        split: How to hold out test images where the folder has none of its own.
        observer: Is told of files that are ignored, and when images are decoded.

    Returns:
        The data set; its images are memory-mapped.

    Raises:
        ConfigError: Test images must be held out, but `split.test_fraction` is 0.
        DataError: The folder's layout or an image in it cannot be used.
        StorageError: `data_dir` cannot be written.
    """
    folder = folder.resolve()
    listing = list_images(folder)
    _report(listing, folder, split, observer)
    key: dict[str, Any] = {"folder": str(folder), "image_size": image_size}
    train, test = listing.train, listing.test
    if not test:
        train, test = _hold_out(train, split, folder)
        key |= {"test_fraction": split.test_fraction, "seed": split.seed}
    files = train + test
    size = size_of(folder / files[0].path)
    if size not in (None, (image_size, image_size)):
        shape = "{}x{}".format(*size)
        scaled = f"the middle square of each image is scaled to {image_size}x{image_size} pixels"
        observer(Note(f"{folder}: {scaled}; the first file has {shape}"))

    def fill(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        decode_images([folder / file.path for file in files], images)
        labels[:] = [file.label for file in files]

    source = Source(
        name=folder.name,
        classes=listing.classes,
        image_size=image_size,
        num_train=len(train),
        num_test=len(test),
        origin={**key, "files": [[file.path, file.size_bytes, file.modified_ns] for file in files]},
        fill=fill,
    )
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
    return open_stored(data_dir / "image_folders" / f"{folder.name}-{digest}", source, observer=observer)


def list_images(folder: Path) -> Listing:
    """Find classes and images of a folder, without opening any image.

    Hidden files and folders are ignored, and files whose extension is no image's are counted. Images may lie deeper
    inside a class folder. Symbolic links are followed inside the folder only.

    Args:
        folder: An existing folder, resolved.

    Raises:
        DataError: It has no classes, one class only, a class without images, parts whose classes differ, or a link
            that leaves it.
    """
    ignored: Counter[str] = Counter()
    parts = {entry.name: entry for entry in _folders(folder, folder, Counter())}
    test_name = next((name for name in ("test", "val") if name in parts), None)
    if "train" not in parts:
        if test_name is not None:
            raise DataError(f"{test_name}/ has no train/ beside it", where=str(folder), hint=f"needed: {_LAYOUT}")
        classes, files = _list_part(folder, folder, ignored)
        return Listing(classes, files, (), ignored, ())
    classes, train = _list_part(folder / "train", folder, ignored)
    if test_name is None:
        return Listing(classes, train, (), ignored, tuple(sorted(parts.keys() - {"train"})))
    test_classes, test = _list_part(folder / test_name, folder, ignored)
    _check_same_classes(classes, test_classes, folder / test_name)
    unused = tuple(sorted(parts.keys() - {"train", test_name}))
    return Listing(classes, train, test, ignored, unused)


def _list_part(part: Path, root: Path, ignored: Counter[str]) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """Classes of a folder of class folders, and their images sorted by path."""
    class_folders = sorted(_folders(part, root, ignored), key=lambda entry: entry.name)
    if not class_folders:
        raise DataError("there are no class folders", where=str(part), hint=f"needed: {_LAYOUT}")
    if len(class_folders) == 1:
        raise DataError(
            f"there is one class only: {class_folders[0].name}", where=str(part), hint="two classes or more are needed"
        )
    files: list[ImageFile] = []
    for label, entry in enumerate(class_folders):
        prefix = Path(entry.path).relative_to(root).as_posix()
        found = sorted(_images(entry.path, prefix, root, label, ignored), key=lambda file: file.path)
        if not found:
            raise DataError(
                f"class '{entry.name}' has no images",
                where=entry.path,
                hint="add images, or remove the folder; read are " + " ".join(sorted(EXTENSIONS)),
            )
        files += found
    return tuple(entry.name for entry in class_folders), tuple(files)


def _folders(place: Path, root: Path, ignored: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Visible folders in `place`; its files are counted as ignored."""
    for entry in _entries(place, root):
        if entry.is_dir():
            yield entry
        else:
            ignored[_extension(entry)] += 1


def _images(place: str, prefix: str, root: Path, label: int, ignored: Counter[str]) -> Iterator[ImageFile]:
    """Images in `place`, which is `prefix` from the root, and below."""
    for entry in _entries(place, root):
        if entry.is_dir():
            if entry.is_symlink():
                raise DataError("a link to a folder inside a class", where=entry.path, hint=_LINK_HINT)
            yield from _images(entry.path, f"{prefix}/{entry.name}", root, label, ignored)
        elif _extension(entry) in EXTENSIONS:
            if not entry.is_file():  # to read a pipe is to wait for ever
                raise DataError("no file, but a pipe, socket or device", where=entry.path, hint="delete it")
            stat = entry.stat()
            yield ImageFile(f"{prefix}/{entry.name}", label, stat.st_size, stat.st_mtime_ns)
        else:
            ignored[_extension(entry)] += 1


_LINK_HINT = "replace the link by what it leads to"


def _entries(place: Path | str, root: Path) -> Iterator[os.DirEntry[str]]:
    """What is visible in a folder; links that leave `root` or lead nowhere are refused."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    target = Path(os.path.realpath(entry.path))  # `resolve` fails where a link leads to itself
                    if not target.is_relative_to(root):
                        raise DataError(f"a link leaves the folder: to {target}", where=entry.path, hint=_LINK_HINT)
                    if not target.exists():
                        raise DataError("a link leads to nothing", where=entry.path, hint="delete it")
                yield entry
    except OSError as error:
        raise DataError(f"cannot list the folder: {error.strerror}", where=str(place)) from error


def _extension(entry: os.DirEntry[str]) -> str:
    _, dot, extension = entry.name.rpartition(".")
    return (dot + extension).lower() if dot else ""


def _check_same_classes(train: tuple[str, ...], test: tuple[str, ...], where: Path) -> None:
    differing = sorted(set(train) ^ set(test))
    if differing:
        name = differing[0]
        side = "test" if name in test else "train"
        more = f" ({len(differing)} classes differ)" if len(differing) > 1 else ""
        raise DataError(
            f"class '{name}' is only in the {side} images{more}",
            where=str(where),
            hint="train and test need the same class folders",
        )


def _hold_out(
    files: tuple[ImageFile, ...], split: SplitConfig, folder: Path
) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]:
    if split.test_fraction == 0.0:
        raise ConfigError(
            f"{folder.name} has no test images, and none are to be held out",
            where="split.test_fraction",
            hint="raise it, or add a test/ folder",
        )
    labels = [file.label for file in files]
    train, test = validation_split(labels, fraction=split.test_fraction, seed=split.seed)
    if not len(test):
        raise DataError("every class has one image only: none can test", where=str(folder), hint="add images")
    return tuple(files[index] for index in train), tuple(files[index] for index in test)


def _report(listing: Listing, folder: Path, split: SplitConfig, observer: Observer) -> None:
    if listing.ignored:
        kinds = ", ".join(f"{count} {name or 'without extension'}" for name, count in sorted(listing.ignored.items()))
        observer(Note(f"{folder}: ignored files that are no images ({kinds})"))
    if listing.unused:
        names = ", ".join(f"{name}/" for name in listing.unused)
        observer(Note(f"{folder}: left alone {names}; validation images are cut from train/"))
    if not listing.test:
        observer(Note(f"{folder}: no test/ folder; {split.test_fraction:.0%} of each class is held out for the test"))
