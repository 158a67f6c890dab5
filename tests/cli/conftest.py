from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distillab import cli
from distillab.__main__ import Program, main


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run words in this process, in an empty working directory, through the program's own `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str, program: Program = cli.run) -> Outcome:
        capsys.readouterr()
        code = main(words, program)
        return Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
