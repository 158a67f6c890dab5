"""The folder of tables of logits: cannot be written, is full, is shared, is swept."""

import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from distillab.guidance import cache as cache_module
from tables_of_logits import KEY, Told, opened, stored, table


def blocked(tmp_path, monkeypatch, how):
    """A folder that cannot be written, for one reason or another; root may write to read-only folders."""
    folder = tmp_path / "cache"
    if how == "a file":
        folder.write_text("")
    elif how == "a file in a key's place":
        folder.mkdir()
        (folder / KEY.sha256).write_text("")
    else:
        number, owner, name = {
            "full disk": (errno.ENOSPC, "os", "fsync"),
            "quota": (errno.EDQUOT, "os", "fsync"),
            "read-only": (errno.EROFS, "tempfile", "mkstemp"),
        }[how]

        def refuse(*_args, **_kwargs):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(f"{owner}.{name}", refuse)
    return folder


@pytest.mark.parametrize("how", ["a file", "a file in a key's place", "full disk", "quota", "read-only"])
def test_a_folder_that_cannot_be_written_is_told_once_and_memory_goes_on(tmp_path, monkeypatch, how):
    told = Told()
    cache = opened(blocked(tmp_path, monkeypatch, how), told)
    for view in range(3):
        assert cache.find(KEY, view) is None
        cache.store(KEY, view, table(view))
    assert all(torch.equal(cache.find(KEY, view), table(view)) for view in range(3))
    assert len(told) == 1
    assert "memory" in told[0]
    assert not list(tmp_path.rglob("view-*"))
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_folder_that_can_only_be_read_is_read(tmp_path, monkeypatch):
    stored(tmp_path)

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.utime", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    told = Told()
    assert torch.equal(opened(tmp_path, told).find(KEY, 4), table())
    assert not told


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def keys_by_age(folder, count=3):
    """Tables of some keys, the first of them unused for longest, and a limit that one more exceeds by a byte."""
    keys = [replace(KEY, seed=seed) for seed in range(count)]
    for age, key in enumerate(keys):
        stored(folder, key)
        os.utime(folder / key.sha256, (1000 + age, 1000 + age))
    return keys, folder_bytes(folder) + table().nbytes + cache_module._OVERHEAD_BYTES - 1


def present(folder, keys):
    return [(folder / key.sha256).exists() for key in keys]


def test_the_least_recently_used_key_makes_room(tmp_path):
    keys, limit = keys_by_age(tmp_path)
    told = Told()
    opened(tmp_path, told, limit).store(KEY, 0, table())
    assert present(tmp_path, [*keys, KEY]) == [False, True, True, True]
    assert folder_bytes(tmp_path) <= limit
    assert not told


def test_a_hit_makes_a_key_recent(tmp_path):
    keys, limit = keys_by_age(tmp_path)
    assert opened(tmp_path).find(keys[0], 4) is not None
    opened(tmp_path, limit_bytes=limit).store(KEY, 0, table())
    assert present(tmp_path, [*keys, KEY]) == [True, False, True, True]


def test_keys_in_use_are_never_removed(tmp_path):
    keys, limit = keys_by_age(tmp_path)
    cache = opened(tmp_path, limit_bytes=limit)
    cache.find(keys[0], 4)
    os.utime(tmp_path / keys[0].sha256, (1, 1))
    cache.store(KEY, 0, table())
    assert present(tmp_path, [*keys, KEY]) == [True, False, True, True]


def test_the_limit_holds_even_if_nothing_can_be_removed(tmp_path):
    keys, _ = keys_by_age(tmp_path)
    before = folder_bytes(tmp_path)
    told = Told()
    cache = opened(tmp_path, told, limit_bytes=1000)
    for view in range(2):
        cache.store(KEY, view, table(view))
    assert all(torch.equal(cache.find(KEY, view), table(view)) for view in range(2))
    assert len(told) == 1
    assert "1,000 bytes" in told[0]
    assert present(tmp_path, keys) == [True] * 3
    assert folder_bytes(tmp_path) == before


def test_the_folder_never_exceeds_its_limit(tmp_path):
    limit = 3 * 2048 + cache_module._OVERHEAD_BYTES
    for seed in range(6):
        opened(tmp_path, limit_bytes=limit).store(replace(KEY, seed=seed), 0, table())
        assert 0 < folder_bytes(tmp_path) <= limit
    assert (tmp_path / replace(KEY, seed=5).sha256).exists()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    leftover = stored(tmp_path).parent / ".tmp-view-5.safetensors-abc"
    leftover.write_bytes(b"half")
    opened(tmp_path).store(replace(KEY, seed=8), 0, table())
    assert not leftover.exists()
    assert opened(tmp_path).find(KEY, 4) is not None


def test_nobody_elses_files_are_removed(tmp_path):
    path = stored(tmp_path)
    strange = tmp_path / "somebody's" / "thesis.txt"
    strange.parent.mkdir()
    strange.write_text("x" * 10_000)
    opened(tmp_path, limit_bytes=cache_module._OVERHEAD_BYTES + table().nbytes).store(replace(KEY, seed=8), 0, table())
    assert strange.exists()
    assert not path.exists()


def write_and_read(folder):
    """What each of two processes does at once."""
    told = Told()
    for view in range(30):
        cache = opened(folder, told)
        found = cache.find(KEY, view)
        assert found is None or torch.equal(found, table(view))
        cache.store(KEY, view, table(view))
        assert torch.equal(cache.find(KEY, view), table(view))
    assert not told


def test_two_processes_that_fill_the_same_views_at_once_are_both_right(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from test_logits_folder import write_and_read

        print("ready", flush=True)
        sys.stdin.readline()
        write_and_read(Path(sys.argv[1]))
    """
    folder = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        write_and_read(folder)
        assert other.wait() == 0
    assert len(list(folder.rglob("*.safetensors"))) == 30
    assert not list(folder.rglob(".tmp-*"))
