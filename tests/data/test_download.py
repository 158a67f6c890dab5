import dataclasses
import hashlib
import resource
import signal
from contextlib import contextmanager

import pytest

from distillab.data.download import RemoteFile, check_file, download
from distillab.errors import DataError, StorageError


@pytest.fixture
def file(server):
    return RemoteFile(server.url, len(server.content), hashlib.sha256(server.content).hexdigest())


def fetch(file, tmp_path, notes, *, retries=2):
    download(file, tmp_path / "data" / file.name, observer=notes, retry_waits=(0.0,) * retries)


def left(tmp_path):
    return [path.name for path in tmp_path.rglob("*") if path.is_file()]


def test_a_whole_file_arrives(server, file, tmp_path, notes):
    fetch(file, tmp_path, notes)
    assert (tmp_path / "data" / file.name).read_bytes() == server.content
    assert left(tmp_path) == ["cifar-10-binary.tar.gz"]
    assert server.requests == 1
    assert file.url in notes[0]


def test_progress_is_told_in_tenths(server, file, tmp_path, notes, monkeypatch):
    monkeypatch.setattr("distillab.data.download._CHUNK_BYTES", 1000)
    fetch(file, tmp_path, notes)
    assert len(notes) == 1 + 9


@pytest.mark.parametrize("first", ["cut", "silently cut", 503])
def test_a_broken_attempt_is_tried_again(server, file, tmp_path, notes, first):
    server.answers = [first, "whole"]
    fetch(file, tmp_path, notes)
    assert (tmp_path / "data" / file.name).read_bytes() == server.content
    assert server.requests == 2
    assert any("trying again" in text for text in notes)


@pytest.mark.parametrize(
    ("answer", "words", "requests"),
    [
        ("cut", "failed", 3),
        ("silently cut", "came with", 3),
        (503, "503", 3),
        (404, "404", 1),
        ("altered", "SHA-256", 1),
        ("longer", "more than", 1),
    ],
)
def test_what_never_comes_right_is_an_error_and_leaves_nothing(server, file, tmp_path, notes, answer, words, requests):
    server.answers = [answer]
    with pytest.raises(DataError, match=words) as caught:
        fetch(file, tmp_path, notes)
    assert server.requests == requests
    assert left(tmp_path) == []
    assert caught.value.where == file.url
    assert str(caught.value).count("\n") <= 5


def test_a_wrong_checksum_names_both_and_what_to_do(server, file, tmp_path, notes):
    server.answers = ["altered"]
    altered = bytearray(server.content)
    altered[len(altered) // 2] ^= 1
    with pytest.raises(DataError) as caught:
        fetch(file, tmp_path, notes)
    text = str(caught.value)
    assert file.sha256 in text
    assert hashlib.sha256(altered).hexdigest() in text
    assert str(tmp_path / "data" / file.name) in text


def test_no_connection_is_an_error_that_says_how_to_do_it_by_hand(server, file, tmp_path, notes):
    server.close()
    with pytest.raises(DataError, match="failed") as caught:
        fetch(file, tmp_path, notes, retries=1)
    assert caught.value.hint is not None
    for part in (file.url, file.sha256, str(tmp_path / "data" / file.name)):
        assert part in caught.value.hint


@contextmanager
def files_no_larger_than(size):
    """The system refuses to write more, as it does on a full disk or over a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more_is_a_storage_error(server, file, tmp_path, notes):
    with files_no_larger_than(1000), pytest.raises(StorageError):
        fetch(file, tmp_path, notes)
    assert left(tmp_path) == []
    assert server.requests == 1


def test_a_local_file_is_checked_by_size_and_hash_and_kept(file, server, tmp_path):
    path = tmp_path / file.name
    path.write_bytes(server.content)
    check_file(file, path)
    path.write_bytes(server.content[:-1])
    with pytest.raises(DataError, match="probably cut"):
        check_file(file, path)
    path.write_bytes(server.content[:-1] + b"?")
    with pytest.raises(DataError, match=file.sha256):
        check_file(file, path)
    assert path.exists()
    with pytest.raises(DataError, match="cannot read"):
        check_file(dataclasses.replace(file), tmp_path / "none")
