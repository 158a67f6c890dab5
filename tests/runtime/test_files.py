import errno

import pytest

from distillab.errors import StorageError
from distillab.runtime.files import replacing, storage_error, write_text


def test_a_file_appears_whole_and_nothing_else(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "content")
    assert (tmp_path / "new" / "a.txt").read_text() == "content"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert path.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_refusal_of_the_system_is_a_storage_error_that_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert str(tmp_path / "file" / "a.txt") == caught.value.where


def test_a_full_disk_is_told_in_words(tmp_path):
    error = storage_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert "disk is full" in str(error)
    assert error.exit_code == 4


def test_permissions_follow_the_umask(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
