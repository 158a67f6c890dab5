"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distillab.errors import StorageError


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
