"""Files written whole or not at all; files of others read with care."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distillab.errors import CheckpointError, StorageError

# Names of twenty thousand classes take one; what is larger is no record of ours.
_LARGEST_RECORD = 16 << 20


def storage_error(error: OSError, path: Path) -> StorageError:
    """Say in words what the operating system refused."""
    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space, or choose another folder"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder"),
        errno.EACCES: ("no permission to write", "choose a folder that you may write to"),
        errno.EPERM: ("no permission to write", "choose a folder that you may write to"),
        errno.EROFS: ("the file system is read-only", "choose another folder"),
        errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another folder"),
        errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    }
    what, hint = reasons.get(error.errno or 0, (error.strerror or str(error), "check the path"))
    return StorageError(what, where=str(path), hint=hint)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and move it there in one step.

    The temporary file lies in the same folder, since only a rename within one file system is atomic.

    Args:
        path: Where the finished file will stand. Its folder is made if missing.

    Yields:
        The path to write to.

    Raises:
        StorageError: The folder or disk refuses; nothing is left behind and an older file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise storage_error(error, path) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files need not be UTF-8


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and flush it to disk; whoever builds a folder of such files moves that in one step.

    Raises:
        OSError: The disk refuses.
    """
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Flush to disk what a folder holds: names that were given or taken away.

    Raises:
        OSError: The disk refuses.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_record(path: Path) -> bytes:
    """The bytes of a plain file that is no larger than records are: no pipe is waited for, no hole read into memory.

    Raises:
        CheckpointError: It is no plain file, or larger.
        OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path, "it is a folder or a device, no file")
        if status.st_size > _LARGEST_RECORD:
            raise _damaged(path, f"more than {_LARGEST_RECORD >> 20} MiB")
        with os.fdopen(handle, "rb", closefd=False) as stream:
            return stream.read(_LARGEST_RECORD)
    finally:
        os.close(handle)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that a run, or another tool, has left.

    Raises:
        CheckpointError: It is no JSON object, or no plain file, or larger than records are.
        OSError: It cannot be read.
    """
    return json_object(read_record(path), path)


def json_object(text: str | bytes, path: Path) -> dict[str, Any]:
    """The object that a text from a file is.

    Raises:
        CheckpointError: It is none, or larger than records are.
    """
    if len(text) > _LARGEST_RECORD:
        raise _damaged(path, f"more than {_LARGEST_RECORD >> 20} MiB")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise _damaged(path, error) from error
    except RecursionError:
        raise _damaged(path, "its JSON is nested too deeply") from None
    if not isinstance(record, dict):
        raise _damaged(path, "its JSON is no object")
    return record


def check_format(record: Mapping[str, Any], newest: int, path: Path) -> None:
    """See that a file was not written by a later version, which may mean other things by the same names.

    Args:
        record: What it says; its "format_version" is looked at.
        newest: The format that this version writes.
        path: Of the file.

    Raises:
        CheckpointError: It was.
    """
    version = record.get("format_version")
    if isinstance(version, int) and version > newest:
        raise CheckpointError(
            f"written in format {version}, this version reads {newest}", where=str(path), hint="upgrade distillab"
        )


def check_plain(folder: Path) -> None:
    """See that plain files and folders are all there is below a folder, before somebody goes on writing there.

    What is written to a link would land elsewhere, and a pipe is waited for without end. wandb's own folder, which
    holds links by nature, is not entered.

    Raises:
        StorageError: There is something else.
    """
    for home, folders, names in os.walk(folder):  # which enters no links
        for path in (Path(home, name) for name in (*folders, *names)):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # whoever owns the folder is at work
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                found = "a link" if stat.S_ISLNK(mode) else "a pipe or a device"
                raise StorageError(
                    f"this is {found}, where a run keeps plain files",
                    where=str(path),
                    hint="put a plain file or folder in its place, or remove it",
                )
        folders[:] = [name for name in folders if name != "wandb"]


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"damaged or cut short: {reason}", where=str(path), hint="copy it again, or make it again")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
