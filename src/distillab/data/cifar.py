"""CIFAR-10 and CIFAR-100 from their binary archives: no pickle is read and no archive is unpacked to disk."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillab.data.dataset import Dataset
from distillab.data.download import RemoteFile, by_hand, check_file, download
from distillab.data.store import Fill, Source, open_stored
from distillab.errors import ConfigError, DataError
from distillab.runtime.events import Observer

_HOME = "https://www.cs.toronto.edu/~kriz/"
_SIDE = 32
_IMAGE_BYTES = 3 * _SIDE * _SIDE
# Companion texts (class names, a page of HTML) are skipped; nothing larger belongs into these archives.
_LARGEST_COMPANION_BYTES = 1 << 20
_FETCH_ANEW = "fetch the archive anew from " + _HOME


@dataclass(frozen=True)
class CifarArchive:
    """One of the binary archives, exactly as it must be.

    A record is `label_bytes` labels, the last of them the one to predict, then 3,072 bytes: the red, green and
    blue planes of a 32 x 32 image, row by row.

    Attributes:
        name: The data set's.
        file: The archive.
        folder: Its only top folder.
        train_files: Names of the files to train with -> their number of records.
        test_files: The same to test with.
        label_bytes: 1, or 2 where a coarse label stands before the fine one.
        classes: Names of the classes.
    """

    name: str
    file: RemoteFile
    folder: str
    train_files: dict[str, int]
    test_files: dict[str, int]
    label_bytes: int
    classes: tuple[str, ...]

    @property
    def files(self) -> dict[str, int]:
        """All files with their number of records, in the order of the data set."""
        return {**self.train_files, **self.test_files}

    def size_bytes(self, name: str) -> int:
        """Exact size of one of its files."""
        return self.files[name] * (self.label_bytes + _IMAGE_BYTES)


CIFAR10 = CifarArchive(
    name="cifar10",
    file=RemoteFile(
        url=_HOME + "cifar-10-binary.tar.gz",
        size_bytes=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train_files={f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
    test_files={"test_batch.bin": 10_000},
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

_FINE_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CIFAR100 = CifarArchive(
    name="cifar100",
    file=RemoteFile(
        url=_HOME + "cifar-100-binary.tar.gz",
        size_bytes=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train_files={"train.bin": 50_000},
    test_files={"test.bin": 10_000},
    label_bytes=2,
    classes=tuple(_FINE_CLASSES.split()),
)


def open_cifar(
    archive: CifarArchive,
    *,
    data_dir: Path,
    offline: bool,
    observer: Observer,
    place: Path | None = None,
) -> Dataset:
    """Open CIFAR: the stored arrays, else a copy in `place`, else a download.

    Args:
        archive: Which one.
        data_dir: Where the download and the stored arrays are kept.
        offline: Never download.
        observer: Is told what takes time.
        place: The archive, its unpacked folder, or a folder that holds either; `data_dir` if not given.

    Returns:
        Images in the order of the archive's files.

    Raises:
        DataError: The archive is missing and cannot be fetched, is another file, or is not what CIFAR is.
        StorageError: The disk does not take it.
    """
    found = find_copy(archive, place or data_dir)
    if found is not None and found.is_dir():
        return _open_unpacked(archive, found, data_dir=data_dir, observer=observer)
    path = found or data_dir / archive.file.name

    def fill(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        if path.exists():
            check_file(archive.file, path)
        elif offline:
            raise DataError(
                f"{archive.name} is not in {data_dir}, and downloads are off",
                where="offline",
                hint=by_hand(archive.file, path),
            )
        else:
            download(archive.file, path, observer=observer)
        _decode(archive, _archive_members(archive, path), images, labels)

    origin = {"archive": archive.file.name, "sha256": archive.file.sha256}
    return open_stored(data_dir / archive.name, _source(archive, origin, fill), observer=observer)


def open_cifar10(*, data_dir: Path, offline: bool, observer: Observer) -> Dataset:
    """CIFAR-10 by its name; see `open_cifar`."""
    return open_cifar(CIFAR10, data_dir=data_dir, offline=offline, observer=observer)


def open_cifar100(*, data_dir: Path, offline: bool, observer: Observer) -> Dataset:
    """CIFAR-100 by its name; see `open_cifar`."""
    return open_cifar(CIFAR100, data_dir=data_dir, offline=offline, observer=observer)


def find_archive(place: Path) -> CifarArchive | None:
    """Which of the two archives a path is or holds; None if neither.

    Raises:
        ConfigError: It holds both.
    """
    present = [archive for archive in (CIFAR10, CIFAR100) if find_copy(archive, place) is not None]
    if len(present) > 1:
        raise ConfigError(
            "the folder holds CIFAR-10 and CIFAR-100",
            where=str(place),
            hint=f"name one of them: {place / CIFAR10.file.name}",
        )
    return present[0] if present else None


def find_copy(archive: CifarArchive, place: Path) -> Path | None:
    """The archive or its unpacked folder, where `place` is or holds one.

    Returns:
        The archive's file, else its folder, else None.
    """
    if place.is_file():
        return place if place.name == archive.file.name else None
    if (place / archive.file.name).is_file():
        return place / archive.file.name
    for folder in (place, place / archive.folder):
        if all((folder / name).is_file() for name in archive.files):
            return folder
    return None


def _open_unpacked(archive: CifarArchive, folder: Path, *, data_dir: Path, observer: Observer) -> Dataset:
    folder = folder.resolve()
    stats = {name: (folder / name).stat() for name in archive.files}
    origin = {
        "folder": str(folder),
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()],
    }

    def fill(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        _decode(archive, _unpacked_members(archive, folder), images, labels)

    key = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:8]
    stored = data_dir / f"{archive.name}-{key}"
    return open_stored(stored, _source(archive, origin, fill), observer=observer)


def _source(archive: CifarArchive, origin: dict[str, Any], fill: Fill) -> Source:
    return Source(
        name=archive.name,
        classes=archive.classes,
        image_size=_SIDE,
        num_train=sum(archive.train_files.values()),
        num_test=sum(archive.test_files.values()),
        origin=origin,
        fill=fill,
    )


def _unpacked_members(archive: CifarArchive, folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in archive.files:
        path = folder / name
        _check_size(archive, name, path.stat().st_size, where=path)
        yield name, path.read_bytes()


def _archive_members(archive: CifarArchive, path: Path) -> Iterator[tuple[str, bytes]]:
    """Read the expected files out of the archive's stream, refusing whatever such an archive never has."""
    missing = {f"{archive.folder}/{name}": name for name in archive.files}
    expected = frozenset(missing)
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                _check_member(member, path)
                if member.name in missing:
                    name = missing.pop(member.name)
                    _check_size(archive, name, member.size, where=path)
                    content = tar.extractfile(member)
                    assert content is not None  # it is a regular file
                    yield name, content.read()
                elif member.name in expected or member.size > _LARGEST_COMPANION_BYTES:
                    raise _refused(f"a file that does not belong there: {member.name!r}", path)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"the archive is damaged: {error}", where=str(path), hint=_FETCH_ANEW) from error
    if missing:
        raise DataError(f"the archive lacks {min(missing)}", where=str(path), hint=_FETCH_ANEW)


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise _refused(f"a path that leaves its folder: {member.name!r}", path)
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise _refused(f"a link or special file: {member.name!r}", path)


def _refused(what: str, path: Path) -> DataError:
    return DataError(f"the archive holds {what}", where=str(path), hint=_FETCH_ANEW)


def _check_size(archive: CifarArchive, name: str, size: int, *, where: Path) -> None:
    if size != archive.size_bytes(name):
        raise DataError(
            f"{name} has {size:,} bytes instead of {archive.size_bytes(name):,}",
            where=str(where),
            hint=_FETCH_ANEW,
        )


def _decode(
    archive: CifarArchive,
    members: Iterator[tuple[str, bytes]],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> None:
    starts = dict(zip(archive.files, accumulate(archive.files.values(), initial=0), strict=False))
    for name, content in members:
        records = np.frombuffer(content, dtype=np.uint8).reshape(archive.files[name], -1)
        part = slice(starts[name], starts[name] + len(records))
        labels[part] = records[:, archive.label_bytes - 1]
        planes = records[:, archive.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
        images[part] = planes.transpose(0, 2, 3, 1)
        if labels[part].max() >= len(archive.classes):
            raise DataError(
                f"{name} has label {labels[part].max()}, but there are {len(archive.classes)} classes",
                where=archive.name,
                hint=_FETCH_ANEW,
            )
