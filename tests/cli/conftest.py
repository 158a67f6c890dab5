from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import shell
from distillab import cli
from distillab.__main__ import Program, main


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[shell.Command]:
    """Run words in this process, in an empty working directory, through the program's own `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str, program: Program = cli.run) -> shell.Outcome:
        capsys.readouterr()
        code = main(words, program)
        return shell.Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
