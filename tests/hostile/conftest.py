"""Hostile files are given to the real commands, and everything around them is looked at before and after."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shell
from distillab.__main__ import main

Refused = Callable[..., str]

_WORDS_OF_TORCH = ("weights_only", "add_safe_globals")
_LONGEST_ERROR = 3000


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: what files hold, where links lead, which other things there are."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"link to {path.readlink()}"
        elif path.is_file() and path.stat().st_size < 1 << 20:
            found[str(path)] = path.read_bytes()
        else:
            found[str(path)] = f"{path.lstat().st_mode} {path.lstat().st_size}"
    return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory. Beside it lie somebody's own files, among them what a payload would change."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("mine alone")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def canary(work: Path) -> Path:
    """A file that payloads make: where it stands, a stranger's code has run."""
    return work.parent / "home" / "canary"


@pytest.fixture
def command(work: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[shell.Command]:
    """Run words in this process, in the working directory, through the program's own `main`."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> shell.Outcome:
        capsys.readouterr()
        code = main(words)
        return shell.Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def refused(command: shell.Command, work: Path) -> Refused:
    """Run words that have to end in one clear error and change nothing; gives the error's text.

    Stored data sets under `data/` aside: reading one's own images is no harm.
    """

    def run(*words: str, code: int) -> str:
        before = tree(work.parent)
        outcome = command(*words)
        assert "internal error" not in outcome.err, outcome.err
        assert "Traceback" not in outcome.err
        assert "error: " in outcome.err, outcome
        error = outcome.err[outcome.err.index("error: ") :]
        assert outcome.code == code, error
        assert outcome.out == ""
        assert len(error.splitlines()) <= 3, error
        assert len(error) < _LONGEST_ERROR
        assert all(c.isprintable() or c == "\n" for c in error)
        assert not any(word in error for word in _WORDS_OF_TORCH)
        stored = str(work / "data")
        after = {path: content for path, content in tree(work.parent).items() if not path.startswith(stored)}
        assert after == before
        return error

    return run
