"""Which data sets there are, and opening one of them, or one's own. Imports no torch until one is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distillab.data.config import SplitConfig
from distillab.data.dataset import Dataset, ImageSet
from distillab.errors import ConfigError, DataError, DistillabError, nearest
from distillab.outside_code import find_function, names_code
from distillab.runtime.events import Note, Observer, silent

__all__ = ["DATASETS", "Dataset", "DatasetInfo", "ImageSet", "open_dataset"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is opened.

    Attributes:
        name: What the user calls it.
        summary: One line for `distillab list datasets`.
        num_classes: C.
        num_train: Images to train with (validation is cut from them).
        num_test: Images to test with.
        image_size: Side of its images, in pixels.
        origin: Where the images come from.
        opener: `module:function` that opens it, imported when it is asked for; it takes the keywords
            `data_dir`, `offline` and `observer` and returns a `Dataset`.
    """

    name: str
    summary: str
    num_classes: int
    num_train: int
    num_test: int
    image_size: int
    origin: str
    opener: str


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            summary="handwritten digits, enlarged from 8 x 8; needs no download",
            num_classes=10,
            num_train=1438,
            num_test=359,
            image_size=32,
            origin="scikit-learn",
            opener="distillab.data.digits:open_digits",
        ),
        DatasetInfo(
            name="cifar10",
            summary="photographs of animals and vehicles; a download of 162 MiB",
            num_classes=10,
            num_train=50_000,
            num_test=10_000,
            image_size=32,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            opener="distillab.data.cifar:open_cifar10",
        ),
        DatasetInfo(
            name="cifar100",
            summary="photographs of a hundred kinds of things; a download of 161 MiB",
            num_classes=100,
            num_train=50_000,
            num_test=10_000,
            image_size=32,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            opener="distillab.data.cifar:open_cifar100",
        ),
    )
}


def open_dataset(
    spec: str,
    *,
    data_dir: Path | str = "data",
    offline: bool = False,
    image_size: int = 32,
    split: SplitConfig = SplitConfig(),  # noqa: B008 (frozen)
    allow_code: bool = False,
    observer: Observer = silent,
) -> Dataset:
    """Open a data set by its name, its path, or the function that makes it.

    A name of `DATASETS` wins over a path; write `./digits` for a folder of that name.

    Args:
        spec: A name of `DATASETS`; a CIFAR binary archive, its unpacked folder, or a folder that holds one; a folder
            of images; or `package.module:function`, a function without arguments that returns a `Dataset`.
        data_dir: Where downloads and decoded images are kept, and where a named set is looked for.
        offline: Never download.
        image_size: Side that a folder's images are decoded to, in pixels; other sets keep theirs, and their
            batches are resized.
        split: How to hold out test images where a folder of images has none of its own.
        allow_code: Let `package.module:function` be imported and called.
        observer: Is told what takes time and what was assumed.

    Returns:
        The data set.

    Raises:
        ConfigError: No such name, or code that is not allowed or not there.
        DataError: The path does not exist, or what is there cannot be used.
        StorageError: `data_dir` cannot be written.
    """
    data_dir = Path(data_dir).expanduser()
    if spec in DATASETS:
        opened = find_function(DATASETS[spec].opener, where="data")(
            data_dir=data_dir, offline=offline, observer=observer
        )
        assert isinstance(opened, Dataset)
        return opened
    path = Path(spec).expanduser()
    try:
        is_there = path.exists()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", where=spec, hint="check the path of the data") from error
    if is_there:
        return _open_path(path, data_dir, offline, image_size, split, observer)
    if names_code(spec):
        return _open_code(spec, allow_code, observer)
    if os.sep in spec or spec.startswith((".", "~")):
        raise DataError("there is no such file or folder", where=spec, hint="check the path of the data")
    raise ConfigError(f"unknown data set '{spec}'", where="data", hint=f"{nearest(spec, DATASETS)}; or give a path")


def _open_path(
    path: Path, data_dir: Path, offline: bool, image_size: int, split: SplitConfig, observer: Observer
) -> Dataset:
    from distillab.data.cifar import CIFAR10, CIFAR100, find_archive, open_cifar
    from distillab.data.image_folder import open_image_folder

    archive = find_archive(path)
    if archive is not None:
        return open_cifar(archive, data_dir=data_dir, offline=offline, observer=observer, place=path)
    if path.is_file():
        raise DataError(
            "the file is no archive that can be read",
            where=str(path),
            hint=f"give a folder of images, {CIFAR10.file.name} or {CIFAR100.file.name}",
        )
    return open_image_folder(path, data_dir=data_dir, image_size=image_size, split=split, observer=observer)


def _open_code(target: str, allow_code: bool, observer: Observer) -> Dataset:
    if not allow_code:
        raise ConfigError(
            f"the data set is code that would be run: {target}",
            where="data",
            hint="read that code; if you trust it, add --allow-code",
        )
    observer(Note(f"running {target} for the data"))
    function = find_function(target, where="data")
    try:
        opened = function()
    except DistillabError:
        raise
    # Whatever somebody's function raises, it is the function that could not give the images.
    except Exception as error:
        raise DataError(
            f"{target} raised {type(error).__name__}: {error}", where="data", hint="it is called without arguments"
        ) from error
    if not isinstance(opened, Dataset):
        raise ConfigError(
            f"{target} returned a {type(opened).__name__}, not a Dataset",
            where="data",
            hint="return distillab.data.dataset.Dataset.from_arrays(...)",
        )
    return opened
