"""Downloads that arrive whole and as expected, or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from distillab.errors import DataError
from distillab.runtime.events import Note, Observer
from distillab.runtime.files import replacing

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 18
_MIB = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere, and what it must be.

    Attributes:
        url: Where it is fetched from.
        size_bytes: Its exact size.
        sha256: Of its content, 64 hex digits.
    """

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Last part of the URL: the file's name here."""
        return self.url.rsplit("/", 1)[-1]


def download(file: RemoteFile, path: Path, *, observer: Observer, retry_waits: Sequence[float] = (1.0, 5.0)) -> None:
    """Fetch a file, check its size and SHA-256, and only then put it in its place.

    A connection that fails or breaks off is tried again; a refusal by the server (4xx) or a whole file with
    another hash is not, since it would end the same way.

    Args:
        file: What to fetch.
        path: Where to put it.
        observer: Is told of the start, each tenth, and each retry.
        retry_waits: Seconds to wait before each further attempt.

    Raises:
        DataError: It cannot be fetched, or is not what it must be; nothing is left behind.
        StorageError: The disk does not take it.
    """
    observer(Note(f"downloading {file.url} ({file.size_bytes / _MIB:.0f} MiB) to {path}"))
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for wait in (*retry_waits, None):
            stream.seek(0)
            stream.truncate()
            problem = _attempt(file, _CheckedStream(stream, file, observer))
            if problem is None:
                return
            if wait is None or not problem.may_pass:
                raise DataError(problem.text, where=file.url, hint=by_hand(file, path))
            observer(Note(f"{problem.text}; trying again in {wait:g} s"))
            time.sleep(wait)


def check_file(file: RemoteFile, path: Path) -> None:
    """Refuse a local file that is not the remote one.

    Raises:
        DataError: Size or SHA-256 differ, or it cannot be read. The file stays as it is.
    """
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            what = f"has {size:,} bytes instead of {file.size_bytes:,}: probably cut"
            raise DataError(f"{path.name} {what}", where=str(path), hint=_replace(file))
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error
    if found != file.sha256:
        raise DataError(_wrong_hash(file, found), where=str(path), hint=_replace(file))


def by_hand(file: RemoteFile, path: Path) -> str:
    """What to do where the file cannot be fetched from here."""
    return f"fetch {file.url} (SHA-256 {file.sha256}) elsewhere and put it at {path}"


def _replace(file: RemoteFile) -> str:
    return f"delete the file, then run again to download it, or fetch {file.url} anew"


def _wrong_hash(file: RemoteFile, found: str) -> str:
    return f"{file.name} is not the expected file: SHA-256 {found} instead of {file.sha256}"


@dataclass(frozen=True)
class _Problem:
    text: str
    may_pass: bool


def _attempt(file: RemoteFile, stream: _CheckedStream) -> _Problem | None:
    """Fetch once; None if the file came whole and right."""
    import pooch
    import requests

    fetch = pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_SECONDS)
    try:
        fetch(file.url, stream, None)
    except requests.RequestException as error:
        answer = error.response
        if answer is not None and not answer.ok:
            text = f"the server answered {answer.status_code} {answer.reason}"
            return _Problem(text, may_pass=answer.status_code >= 500)
        kept = f" after {stream.received:,} of {file.size_bytes:,} bytes" if stream.received else ""
        return _Problem(f"the download of {file.name} failed{kept} ({_kind(error)})", may_pass=True)
    if stream.received != file.size_bytes:
        text = f"{file.name} came with {stream.received:,} of {file.size_bytes:,} bytes"
        return _Problem(text, may_pass=True)
    found = stream.digest.hexdigest()
    return None if found == file.sha256 else _Problem(_wrong_hash(file, found), may_pass=False)


def _kind(error: Exception) -> str:
    # Messages of requests are long and name objects; the kind says enough: ConnectTimeout, ConnectionError.
    return type(error).__name__


class _CheckedStream:
    """A file that hashes what is written to it, reports each tenth, and takes no more than the size expected."""

    def __init__(self, stream: BinaryIO, file: RemoteFile, observer: Observer) -> None:
        self.digest = hashlib.sha256()
        self.received = 0
        self._stream = stream
        self._file = file
        self._observer = observer

    def write(self, chunk: bytes) -> int:
        """Take the next bytes."""
        before, self.received = self.received, self.received + len(chunk)
        expected = self._file.size_bytes
        if self.received > expected:
            raise DataError(
                f"the server sends more than the {expected:,} bytes of {self._file.name}",
                where=self._file.url,
                hint="it is another file; look at the address in a browser",
            )
        if 10 * before // expected < 10 * self.received // expected < 10:
            share = f"{self.received / _MIB:.0f} of {expected / _MIB:.0f} MiB"
            self._observer(Note(f"{self._file.name}: {share}"))
        self.digest.update(chunk)
        return self._stream.write(chunk)

    def flush(self) -> None:
        """Nothing to do: the file is flushed once, when it is whole."""
