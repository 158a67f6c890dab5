"""Tables of teachers' logits, kept in memory and on disk, so that no view is asked for twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from distillab.data.config import AugmentConfig
from distillab.errors import CheckpointError, ShapeError, StorageError
from distillab.models.weight_files import digest, read_weights, write_safetensors
from distillab.models.weights import weights_sha256
from distillab.runtime.device import Compute
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import check_plain, storage_error, write_text

FORMAT_VERSION = 1
"""Raised whenever older tables must not be used: another layout, or augmentation that makes other images."""

_MEMORY_BYTES = 2 * 2**30  # a hundred views of CIFAR-100 in float32
_OVERHEAD_BYTES = 16 * 2**10  # more than the header of a view and a key.json take
_PATIENCE_SECONDS = 60.0  # another process holds the lock for as long as it writes one table


@dataclass(frozen=True)
class CacheKey:
    """All that the logits of a set of images depend on, but for the view.

    Label smoothing, batch size and order are no part of it. Without augmentation neither are seed and view.

    Attributes:
        teacher: `teacher_sha256` of it.
        data: `Dataset.sha256`.
        images: Which of the data set's images in which order, in words or as a hash: "test", or what the training
            images were chosen by.
        num_samples: M images.
        num_classes: C.
        image_size: Side of the images that the teacher gets, in pixels.
        compute: The teacher's device and precision.
        augment: Random changes of the images.
        seed: Of these changes.
    """

    teacher: str
    data: str
    images: str
    num_samples: int
    num_classes: int
    image_size: int
    compute: Compute
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0

    @cached_property
    def augmented(self) -> bool:
        """Whether images change from view to view."""
        return self.augment.is_on

    @cached_property
    def parts(self) -> dict[str, Any]:
        """What is hashed, as plain JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher,
            "data": self.data,
            "images": self.images,
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
            "device": self.compute.device.type,
            "precision": self.compute.precision,
            "augment": self.augment.model_dump() if self.augmented else None,
            "seed": self.seed if self.augmented else None,
        }

    @cached_property
    def sha256(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()


def teacher_sha256(teacher: nn.Module) -> str:
    """Hash of what decides a teacher's logits, as far as it can be seen.

    Beyond `weights_sha256` these are the settings of its layers, which need not show in its weights (strides,
    activations), and buffers that are not saved with them. The code of a foreign `forward` is not seen.

    Args:
        teacher: A `Classifier`, on any device.

    Returns:
        64 hexadecimal digits.

    Raises:
        ConfigError: A model that does not say how it was built.
    """
    buffers = {name: buffer.detach().cpu() for name, buffer in teacher.named_buffers()}
    return digest({"weights": weights_sha256(teacher), "layers": repr(teacher)}, buffers)


class LogitsCache:
    """Tables of logits [M, C] by key and view, for this process and, in a folder, for later ones.

    A folder `<sha256 of the key>` holds `key.json`, for people, and a file a view, which carries its key, its view
    and the hash of its content: one that is damaged or another's is never used. Any number of processes may share
    the folder. Where it cannot be written, the observer is told once and tables are kept in memory; there is room
    for 2 GiB of them, and the least recently used go first.

    Args:
        folder: Holds the tables; None: they live as long as this object.
        limit_bytes: Size that the folder never exceeds: tables of keys that were not used for longest go first,
            those that this object has used stay.
        observer: Is told of files that cannot be used and folders that cannot be written.
    """

    def __init__(self, folder: Path | None, *, limit_bytes: int, observer: Observer = silent) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.observer = observer
        self._recent: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._used: set[str] = set()
        self._writable = folder is not None

    def find(self, key: CacheKey, view: int = 0, *, dtype: torch.dtype | None = None) -> Tensor | None:
        """The table of a view, if there is one that can be trusted.

        Args:
            key: What it must belong to.
            view: Which augmentation; 0 where there is none.
            dtype: Type that it must have; None: any.

        Returns:
            [M, C] on the CPU, memory-mapped where it comes from a file; not to be written to.
        """
        table = self._recent.get((key.sha256, view))
        if table is None and self.folder is not None:
            table = self._read(self.folder / key.sha256 / _file_name(view), key, view, dtype)
        if table is None:
            return None
        self._keep(key, view, table)
        if self.folder is not None:
            # Where that is not allowed nothing is ever removed either.
            with contextlib.suppress(OSError):
                os.utime(self.folder / key.sha256)
        return table

    def store(self, key: CacheKey, view: int, table: Tensor) -> None:
        """Keep the table of a view; one that is there is replaced.

        Args:
            key: What it belongs to.
            view: Which augmentation; 0 where there is none.
            table: [M, C] floats, on any device.

        Raises:
            ShapeError: It has another shape than the key says.
        """
        if table.shape != (key.num_samples, key.num_classes):
            raise ShapeError(
                f"a table of logits is {list(table.shape)}, its key says [{key.num_samples}, {key.num_classes}]",
                where="logits",
            )
        table = table.detach().cpu().contiguous()
        self._used.add(key.sha256)
        if self._write(key, view, table):
            self._recent.pop((key.sha256, view), None)  # read from there, it takes no memory that others need
        else:
            self._keep(key, view, table.clone())

    def recall(self, key: CacheKey, ask: Callable[[], Tensor]) -> Tensor:
        """Logits of images as they are: found, or asked for now and kept.

        Args:
            key: What the answer belongs to, without augmentation.
            ask: Gives [M, C] floats, on any device.

        Returns:
            [M, C] on the CPU; not to be written to.

        Raises:
            ShapeError: The answer has another shape than the key says.
        """
        table = self.find(key)
        if table is None:
            table = ask().detach().cpu()
            self.store(key, 0, table)
        return table

    def _keep(self, key: CacheKey, view: int, table: Tensor) -> None:
        self._used.add(key.sha256)
        self._recent[key.sha256, view] = table
        self._recent.move_to_end((key.sha256, view))
        while len(self._recent) > 1 and sum(known.nbytes for known in self._recent.values()) > _MEMORY_BYTES:
            self._recent.popitem(last=False)

    def _read(self, path: Path, key: CacheKey, view: int, dtype: torch.dtype | None) -> Tensor | None:
        """A verified table; None where there is none, or none that can be used, of which the observer is told."""
        try:
            return _verified(path, key, view, dtype) if path.exists() else None
        except CheckpointError as error:
            reason = error.message
        except OSError as error:
            reason = storage_error(error, path).message
        self.observer(Note(f"{path} is not used, the teacher is asked again: {reason}"))
        return None

    def _write(self, key: CacheKey, view: int, table: Tensor) -> bool:
        """Put a table into the folder; False where there is none, or none that can be written."""
        if self.folder is None or not self._writable:
            return False
        home = self.folder / key.sha256
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=_PATIENCE_SECONDS):
                check_plain(self.folder)
                self._make_room(self.folder, table.nbytes + _OVERHEAD_BYTES)
                write_text(home / "key.json", json.dumps(key.parts, indent=2) + "\n")
                write_safetensors(home / _file_name(view), {"logits": table}, {"key": key.parts, "view": view})
            return True
        except StorageError as error:
            refusal = error
        except OSError as error:
            refusal = storage_error(error, self.folder)
        self._writable = False
        self.observer(Note(f"the teacher's logits are kept in memory from now on: {refusal.message} ({refusal.where})"))
        return False

    def _make_room(self, folder: Path, needed: int) -> None:
        """Remove the least recently used keys until so many bytes more fit; the lock is held."""
        homes = [path for path in folder.iterdir() if re.fullmatch("[0-9a-f]{64}", path.name) and path.is_dir()]
        for home in homes:
            for leftover in home.glob(".tmp-*"):  # of a process that was killed: who writes holds the lock
                leftover.unlink()
        sizes = {home: sum(file.stat().st_size for file in home.iterdir()) for home in homes}
        own = sum(size for home, size in sizes.items() if home.name in self._used)
        if own + needed > self.limit_bytes:
            raise StorageError(
                f"the tables in use and {needed:,} bytes more exceed the limit of {self.limit_bytes:,} bytes",
                where=str(folder),
                hint="raise the limit",
            )
        total = sum(sizes.values())
        others = [home for home in homes if home.name not in self._used]
        for home in sorted(others, key=lambda home: home.stat().st_mtime):
            if total + needed <= self.limit_bytes:
                break
            shutil.rmtree(home)
            total -= sizes[home]


def _file_name(view: int) -> str:
    return f"view-{view}.safetensors"


def _verified(path: Path, key: CacheKey, view: int, dtype: torch.dtype | None) -> Tensor:
    """The table in a file.

    Raises:
        CheckpointError: It is damaged, or the table of another key or view, or of another shape or type.
    """
    tensors, metadata = read_weights(path)
    table = tensors.get("logits")
    if metadata.get("key") != key.parts or metadata.get("view") != view or table is None:
        raise CheckpointError("it holds something else", where=str(path))
    if table.shape != (key.num_samples, key.num_classes) or not table.is_floating_point():
        raise CheckpointError(f"its table is {table.dtype} of shape {list(table.shape)}", where=str(path))
    if dtype not in (None, table.dtype):
        raise CheckpointError(f"its table is {table.dtype}, not {dtype}", where=str(path))
    return table
