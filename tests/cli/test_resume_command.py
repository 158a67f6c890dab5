"""A run that is stopped at the command line says how it goes on, and those words make it go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w

import shell
import tiny
from distillab.training.checkpoint import CheckpointDir
from distillab.training.keeper import Keeper

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored() -> Iterator[None]:
    """As in a terminal: a shell lets its background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def distil(command: shell.Command, tmp_path: Path) -> list[str]:
    """The words that begin a run; its files lie in `run`."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny.RECIPE))
    return ["distill", "--recipe", "tiny.toml", "--method", "fitnet", "--output", "run", "--allow-code"]


@contextmanager
def signalled(*numbers: signal.Signals, step: int) -> Iterator[None]:
    """These signals come while a step of the run is made."""
    count = [0]
    is_due = Keeper.is_due

    def signalled_once(self: Keeper) -> bool:
        count[0] += 1
        if count[0] == step:
            for number in numbers:
                signal.raise_signal(number)
        return is_due(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "is_due", signalled_once)
        yield


def words_that_go_on(err: str) -> list[str]:
    """The command that a message ends with, less the program's name."""
    program, *words = shlex.split(err.splitlines()[-1].partition(":")[2])
    assert program == "distillab"
    return words


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_stopped_run_is_saved_says_how_it_goes_on_and_does(
    number: signal.Signals, code: int, command: shell.Command, distil: list[str], tmp_path: Path
) -> None:
    with signalled(number, step=11):
        stopped = command(*distil, "--quiet")
    assert stopped.code == code
    assert stopped.out == ""
    name = "Ctrl-C" if number is signal.SIGINT else "SIGTERM"
    first, second, third = stopped.err.splitlines()
    assert first == f"stopped by {name} after step 11 of the run; it is saved"
    assert second.endswith("run/checkpoints/checkpoint-11")
    assert third == "  try:   distillab resume run --allow-code"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-11"]
    assert not (tmp_path / "run" / "result.json").exists()

    ended = command(*words_that_go_on(stopped.err))
    assert ended.code == 0
    assert "resuming after step 11 of the run: student" in ended.err
    assert "run folder: run" in ended.out
    whole = command(*[word.replace("run", "whole") for word in distil])
    assert whole.code == 0
    for name in ("metrics.jsonl", "student.safetensors", "teacher.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_second_signal_ends_the_run_at_once(
    number: signal.Signals, code: int, command: shell.Command, distil: list[str], tmp_path: Path
) -> None:
    with signalled(signal.SIGINT, number, step=3):
        stopped = command(*distil, "--quiet")
    assert (stopped.code, stopped.out) == (code, "")
    assert stopped.err.startswith("interrupted\n")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / ".lock").exists()
    ended = command(*words_that_go_on(stopped.err))
    assert ended.code == 0
    assert "no checkpoint yet: starting again" in ended.err


def test_a_signal_while_a_checkpoint_is_written_leaves_the_one_before(
    command: shell.Command, distil: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fsync = os.fsync
    calls = [0]

    def interrupted_fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == 12:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        replace_fsync(handle)

    save = CheckpointDir.save

    def save_interrupted(self: CheckpointDir, *what: object) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", interrupted_fsync)
            return save(self, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(CheckpointDir, "save", save_interrupted)
    stopped = command(*distil, "--checkpoint.minutes", "0")
    assert stopped.code == 143
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [name for name in names if name.startswith(".")] == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    ended = command("resume", "run", "--allow-code")
    assert ended.code == 0
    assert "resuming after step" in ended.err


def test_a_run_that_is_complete_is_shown_again(command: shell.Command, distil: list[str], tmp_path: Path) -> None:
    assert command(*distil).code == 0
    shown = command("resume", "run", "--allow-code")
    assert shown.code == 0
    assert shown.err == "run is complete: nothing is left to do\n"
    assert "fitnet" in shown.out
    as_json = command("resume", "run", "--json")
    assert as_json.code == 0
    result = json.loads(as_json.out)
    assert result.pop("run_dir") == "run"
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())


def test_a_run_that_goes_on_gives_one_json_object(command: shell.Command, distil: list[str], tmp_path: Path) -> None:
    with signalled(signal.SIGINT, step=5):
        assert command(*distil, "--json").out == ""
    ended = command("resume", "run", "--json", "--allow-code")
    assert ended.code == 0
    assert json.loads(ended.out)["kind"] == "distill"


def test_a_changed_setting_is_refused_and_forced(command: shell.Command, distil: list[str], tmp_path: Path) -> None:
    with signalled(signal.SIGINT, step=5):
        command(*distil)
    settings = tmp_path / "run" / "config.toml"
    settings.write_text(settings.read_text().replace("seed = 0", "seed = 1"))
    refused = command("resume", "run", "--allow-code", "--quiet")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 3
    assert "settings.seed was 0, is 1" in refused.err
    assert command("resume", "run", "--allow-code", "--force").code == 0


def test_code_is_not_run_without_leave(command: shell.Command, distil: list[str]) -> None:
    with signalled(signal.SIGINT, step=5):
        command(*distil)
    refused = command("resume", "run")
    assert refused.code == 2
    assert "add --allow-code" in refused.err


def test_the_same_words_begin_go_on_and_show(command: shell.Command, distil: list[str]) -> None:
    words = [*distil, "--resume", "auto"]
    with signalled(signal.SIGTERM, step=5):
        assert command(*words).code == 143
    gone_on = command(*words)
    assert gone_on.code == 0
    assert "going on with run" in gone_on.err
    assert "resuming after step 5" in gone_on.err
    assert "nothing is left to do" in command(*words).err


@pytest.mark.parametrize(("words", "code"), [(["nothing"], 4), ([], 2), (["a", "b"], 2)])
def test_wrong_words_are_told(words: list[str], code: int, command: shell.Command) -> None:
    outcome = command("resume", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) <= 3


def test_a_real_process_is_saved_and_exits_as_shells_expect(distil: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent)}
    words = [sys.executable, "-m", "distillab", *distil, "--training.epochs", "5000"]
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch    2/" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "stopped by SIGTERM" in rest
    assert rest.endswith("  try:   distillab resume run --allow-code\n")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
