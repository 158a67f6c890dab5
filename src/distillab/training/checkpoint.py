"""Checkpoints: folders that are whole or absent, and are verified before they are believed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from safetensors.torch import save as as_bytes
from torch import Tensor

from distillab.errors import CheckpointError
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import check_format, storage_error, sync_folder, write_synced

FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
_STATE = "state.json"
_TENSORS = "tensors"  # the key of a tensor's place in the JSON, and of nothing else there
_NAME = re.compile(r"checkpoint-(\d{1,18})")
_LARGEST_JSON = 256 * 2**20  # bytes; the histories of a year's training have less

State = Mapping[str, Any]
"""What must be known to go on: dictionaries and lists of JSON values and tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and verified.

    Attributes:
        path: Its folder.
        step: Steps that the run had made, over all its stages.
        state: What was saved; tensors on the CPU.
        made_by: What the trajectory depends on and what it was made with, as it was saved.
    """

    path: Path
    step: int
    state: dict[str, Any]
    made_by: dict[str, Any]


class CheckpointDir:
    """The checkpoints of a run, or of some runs that are carried out together: `checkpoint-<step>/` each.

    One holds `model.safetensors`, `optimizer.safetensors` and `ema.safetensors` (as far as there is something to put in
    them), `state.json`, and `manifest.json`: sizes and SHA-256 of the others, format, step, and what the trajectory
    depends on. It is built beside its place, flushed to disk, moved there in one step, and read back; only then are
    older ones removed. Which is the newest is found by looking at all of them, not by a pointer that may lie.

    The folder belongs to whoever holds the lock of its run.

    Args:
        path: The folder; made with the first checkpoint.
        keep: How many of the newest to keep, at least 1.
        observer: Is told of damaged ones.
    """

    def __init__(self, path: Path, *, keep: int, observer: Observer = silent) -> None:
        self.path = path
        self._keep = keep
        self._observer = observer

    def save(self, step: int, state: State, made_by: Mapping[str, Any]) -> Path:
        """Write a checkpoint, whole or not at all.

        Args:
            step: Steps that the run has made.
            state: What must be known to go on.
            made_by: What the trajectory depends on and what it is made with; JSON values.

        Returns:
            Its folder.

        Raises:
            StorageError: The disk refuses; those that were there still are.
        """
        place = self.path / f"checkpoint-{step}"
        temporary: Path | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.path))
            _write(temporary, step, state, made_by)
            if place.exists():  # a damaged one, or one of a trajectory that was left by force
                place.rename(self.path / f"{temporary.name}-replaced")
            temporary.rename(place)
            sync_folder(self.path)
            _verified(place)
            self._prune(place)
        except OSError as error:
            raise storage_error(error, place) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return place

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be trusted; the observer is told of those that cannot."""
        for place in self.places():
            try:
                return read_checkpoint(place)
            except CheckpointError as error:
                self._observer(Note(f"{place} is not used, the one before is: {error.message}"))
        return None

    def places(self) -> list[Path]:
        """Folders of all checkpoints, the newest first; unread."""
        try:
            found = [(path, _NAME.fullmatch(path.name)) for path in self.path.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self.path) from error
        return [path for path, name in sorted(found, key=_step_of, reverse=True) if name]

    def tidy(self) -> None:
        """Remove what killed processes have left half-written."""
        for leftover in self.path.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _prune(self, latest: Path) -> None:
        self.tidy()
        places = self.places()
        number = places.index(latest)
        # Those beyond it by number are damaged, or of a trajectory that was left: the run went on from an earlier one.
        for place in [*places[:number], *places[number + self._keep :]]:
            # Away under its name in one step: half of one must never be taken for a checkpoint.
            doomed = self.path / f".tmp-{place.name}"
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def read_checkpoint(place: Path) -> Checkpoint:
    """Read a checkpoint, every byte of it held against its manifest.

    Args:
        place: Its folder.

    Raises:
        CheckpointError: It is damaged, cut short, of a newer format, or not a checkpoint.
    """
    manifest, contents = _verified(place)
    values = _json(contents.pop(_STATE), place / _STATE)
    tensors: dict[str, Tensor] = {}
    for name, data in contents.items():
        try:
            tensors |= tensors_in(data)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise _damaged(place / name, error) from error
    try:
        state = _unpacked(values, tensors)
    except (KeyError, RecursionError, TypeError) as error:
        raise _damaged(place, f"{type(error).__name__} {error}") from error
    return Checkpoint(place, manifest["step"], state, manifest["made_by"])


def _write(folder: Path, step: int, state: State, made_by: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Tensor]] = {}
    packed = json.dumps(_packed(state, (), files)).encode()
    contents = {name: as_bytes(tensors) for name, tensors in sorted(files.items())}
    contents[_STATE] = packed
    for name, data in contents.items():
        write_synced(folder / name, data)
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "made_by": dict(made_by),
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
        },
    }
    record = json.loads(json.dumps(record))  # so that what is hashed now is what will be read
    record["sha256"] = _own_sha256(record)
    write_synced(folder / _MANIFEST, (json.dumps(record, indent=2) + "\n").encode())
    sync_folder(folder)


def _packed(value: Any, path: tuple[str, ...], files: dict[str, dict[str, Tensor]]) -> Any:
    """JSON values as they are; tensors put into the file where they belong, their place there left behind."""
    if isinstance(value, Tensor):
        kind = next((name for name in ("optimizer", "ema") if name in path), "model")
        name = "/".join(path)
        # A copy: safetensors wants no two tensors in one memory, and the CPU's row-major order.
        files.setdefault(f"{kind}.safetensors", {})[name] = torch.empty(
            value.shape, dtype=value.dtype, device="cpu"
        ).copy_(value.detach())
        return {_TENSORS: name}
    if isinstance(value, Mapping):
        return {key: _packed(part, (*path, str(key)), files) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(part, (*path, str(number)), files) for number, part in enumerate(value)]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSORS}:
            return tensors[value[_TENSORS]]
        return {key: _unpacked(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    return value


def _verified(place: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and contents. What is parsed later are the bytes that were hashed here, whatever becomes of the files.

    Raises:
        CheckpointError: As in `read_checkpoint`.
    """
    manifest = _manifest(place)
    contents = {}
    for name, expected in _expected_files(manifest, place):
        try:
            data = _read_exactly(place / name, expected["bytes"])
        except OSError as error:
            raise _damaged(place / name, error.strerror or error) from error
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise _damaged(place / name, "its SHA-256 is not the recorded one")
        contents[name] = data
    return manifest, contents


def _manifest(place: Path) -> dict[str, Any]:
    path = place / _MANIFEST
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise _damaged(path, f"it has {size:,} bytes")
        manifest = _json(_read_exactly(path, size), path)
    except OSError as error:
        raise _damaged(path, error.strerror or error) from error
    check_format(manifest, FORMAT_VERSION, path)
    if manifest.get("sha256") != _own_sha256(manifest):
        raise _damaged(path, "its SHA-256 is not the recorded one")
    step = manifest.get("step")
    if not isinstance(step, int) or place.name != f"checkpoint-{step}" or not isinstance(manifest.get("made_by"), dict):
        raise _damaged(path, "it belongs to another checkpoint")
    return manifest


def _expected_files(manifest: Mapping[str, Any], place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    known = {_STATE, *(f"{kind}.safetensors" for kind in ("model", "ema", "optimizer"))}
    files = manifest.get("files")
    if not isinstance(files, dict) or not {_STATE} <= files.keys() <= known:
        raise _damaged(place / _MANIFEST, "it does not name a checkpoint's files")
    for name, expected in files.items():
        if not isinstance(expected, dict) or not isinstance(expected.get("bytes"), int):
            raise _damaged(place / _MANIFEST, f"it does not describe {name}")
        yield name, expected


def _read_exactly(path: Path, num_bytes: int) -> bytes:
    """The bytes of a plain file of a known size: no more is read, no device is waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as stream:
        size = os.fstat(handle).st_size
        if size != num_bytes:
            raise _damaged(path, f"it has {size:,} bytes, not {num_bytes:,}")
        try:
            return stream.read(num_bytes)
        except MemoryError:
            raise _damaged(path, f"its {size:,} bytes do not fit into memory") from None


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(record, dict):
        raise _damaged(path, "its JSON is no object")
    return record


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"damaged or cut short: {reason}", where=str(path), hint="resume from the one before")


def _step_of(found: tuple[Path, re.Match[str] | None]) -> int:
    name = found[1]
    return int(name[1]) if name else -1
