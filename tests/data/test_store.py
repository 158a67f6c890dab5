import errno
import json
import threading

import numpy as np
import pytest

from distillab.data.store import Source, open_stored
from distillab.errors import DataError, StorageError


class Maker:
    """A source of random images that counts how often it is asked."""

    def __init__(self, *, version=1, fails=False):
        self.calls = 0
        self.fails = fails
        self.source = Source("toy", ("a", "b"), 4, 5, 3, {"version": version}, self.fill)

    def fill(self, images, labels):
        self.calls += 1
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape)
        labels[:] = np.arange(len(labels)) % 2
        if self.fails:
            raise DataError("image number 7 is corrupt")


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_images_are_decoded_once_and_mapped_from_then_on(tmp_path, notes):
    maker = Maker()
    first = open_stored(tmp_path / "toy", maker.source, observer=notes)
    again = open_stored(tmp_path / "toy", maker.source, observer=notes)
    assert maker.calls == len(notes) == 1
    assert isinstance(again.train.images.base, np.memmap)
    assert again.sha256 == first.sha256
    assert np.array_equal(again.train.images, first.train.images)
    expected = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3))
    assert np.array_equal(first.train.images, expected[:5])
    assert np.array_equal(first.test.images, expected[5:])
    assert first.test.labels.tolist() == [1, 0, 1]
    assert first.mean == pytest.approx((expected[:5] / 255).mean((0, 1, 2)))


def test_writing_to_the_images_never_reaches_the_file(tmp_path, notes):
    maker = Maker()
    open_stored(tmp_path / "toy", maker.source, observer=notes).train.images[:] = 0
    assert open_stored(tmp_path / "toy", maker.source, observer=notes).train.images.any()
    assert maker.calls == 1


def test_a_source_that_changed_is_decoded_again(tmp_path, notes):
    open_stored(tmp_path / "toy", Maker().source, observer=notes)
    changed = Maker(version=2)
    open_stored(tmp_path / "toy", changed.source, observer=notes)
    assert changed.calls == 1
    assert "changed" in notes[-1]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damaged_arrays_are_noticed_and_made_again(tmp_path, notes, name, damage):
    maker = Maker()
    first = open_stored(tmp_path / "toy", maker.source, observer=notes)
    path = tmp_path / "toy" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    kept = {"flip": content, "cut": content[:-9], "empty": b"", "remove": b""}[damage]
    path.write_bytes(kept)
    if damage == "remove":
        path.unlink()
    assert open_stored(tmp_path / "toy", maker.source, observer=notes).sha256 == first.sha256
    assert maker.calls == 2
    assert "damaged" in notes[-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"format": 1}'])
def test_a_manifest_that_says_nothing_is_not_trusted(tmp_path, notes, text):
    maker = Maker()
    open_stored(tmp_path / "toy", maker.source, observer=notes)
    (tmp_path / "toy" / "manifest.json").write_text(text, encoding="latin-1")
    open_stored(tmp_path / "toy", maker.source, observer=notes)
    assert maker.calls == 2


def test_a_manifest_of_another_format_is_not_trusted(tmp_path, notes):
    maker = Maker()
    open_stored(tmp_path / "toy", maker.source, observer=notes)
    path = tmp_path / "toy" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    open_stored(tmp_path / "toy", maker.source, observer=notes)
    assert maker.calls == 2


def test_a_build_that_fails_leaves_nothing_behind(tmp_path, notes):
    with pytest.raises(DataError, match="number 7"):
        open_stored(tmp_path / "toy", Maker(fails=True).source, observer=notes)
    assert names(tmp_path) == []


def test_a_full_disk_is_an_error_before_the_work(tmp_path, notes, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    maker = Maker()
    with pytest.raises(StorageError, match="disk is full"):
        open_stored(tmp_path / "toy", maker.source, observer=notes)
    assert maker.calls == 0
    assert names(tmp_path) == []


def test_images_are_stored_where_the_system_cannot_reserve_room(tmp_path, notes, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate")
    assert open_stored(tmp_path / "toy", Maker().source, observer=notes).train.images.any()


def test_a_place_that_is_a_file_is_an_error(tmp_path, notes):
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError):
        open_stored(tmp_path / "data" / "toy", Maker().source, observer=notes)


def test_of_two_who_open_at_once_one_decodes(tmp_path, notes):
    maker = Maker()
    slow_fill = maker.fill
    both_started = threading.Barrier(2)
    opened = []

    def open_it():
        both_started.wait()
        opened.append(open_stored(tmp_path / "toy", maker.source, observer=notes).sha256)

    def fill(images, labels):
        threading.Event().wait(0.2)
        slow_fill(images, labels)

    object.__setattr__(maker.source, "fill", fill)
    threads = [threading.Thread(target=open_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.calls == 1
    assert len(opened) == 2
    assert len(set(opened)) == 1


def test_stored_arrays_open_from_a_folder_that_cannot_be_written(tmp_path, notes, monkeypatch):
    maker = Maker()
    open_stored(tmp_path / "toy", maker.source, observer=notes)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Running as root no folder refuses, so the lock does.
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    open_stored(tmp_path / "toy", maker.source, observer=notes)
    with pytest.raises(StorageError, match="permission"):
        open_stored(tmp_path / "other", maker.source, observer=notes)
