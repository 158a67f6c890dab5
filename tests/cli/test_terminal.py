from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pexpect
import pytest
from PIL import Image

from distillab.errors import ConfigError, DistillabError
from distillab.runtime.events import EpochEnded, Note, StageEnded, StageStarted, StepsDone
from distillab.tables import Column, Table
from distillab.terminal import Screen, error_lines, printable

DISTILLAB = Path(sys.executable).with_name("distillab")
PLAIN = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS")}
WATCH = """
import sys, time
from distillab.terminal import Screen
from distillab.tables import Column, Table
from distillab.runtime.events import *
screen = Screen()
screen.quiet, screen.json = "--quiet" in sys.argv, "--json" in sys.argv
with screen.watching() as observe:
    observe(Note("classes: [/x] \\x1b[31mred"))
    observe(StageStarted("student by st [/x]", "student", "soft_target", 2, 3))
    for epoch in (1, 2):
        for step in (1, 2, 3):
            observe(StepsDone("student by st [/x]", 3 * (epoch - 1) + step, 6, 0.5 / step, 0.9))
            if sys.stderr.isatty():
                time.sleep(0.12)  # longer than a bar waits before it is drawn again
        values = {"loss": 0.25, "train_top1": 0.875, "validation_top1": 0.5, "seconds": 1.5}
        observe(EpochEnded("student by st [/x]", epoch, 2, values))
    observe(StageEnded("student by st [/x]", 2))
screen.show({"top1": 0.5}, Table((Column("class"), Column("top-1 %", True)), (("[/x] " + "wide " * 30, "50.0"),)))
"""


def watch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCH, *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=PLAIN | environment,
    )


def on_a_terminal(*words: str, **environment: str) -> str:
    child = pexpect.spawn(
        sys.executable,
        ["-c", WATCH, *words],
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 100),
        env=PLAIN | {"TERM": "xterm-256color"} | environment,
    )
    shown: str = child.read()
    child.close()
    assert child.exitstatus == 0
    return shown


def test_short_words_of_a_table_stay_whole_where_it_is_too_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = ("mbd-delta", "a long sentence of some words " * 3, "97.5", "nothing")
    Screen().show({}, Table((Column("method"), Column("told"), Column("top-1 %", True), Column("shown")), (row,)))
    shown = capsys.readouterr().out
    assert {"mbd-delta", "nothing", "method", "shown"} <= set(shown.split())


def test_a_pipe_gets_one_plain_line_an_epoch() -> None:
    done = watch()
    lines = done.stderr.splitlines()
    assert lines[0] == "classes: [/x] \\x1b[31mred"
    assert lines[1] == "student by st [/x]: 2 epochs of 3 steps"
    assert lines[2] == "student by st [/x]  epoch 1/2  loss 0.2500  train 87.5%  validation 50.0%  1.5 s"
    assert len(lines) == 4
    assert "\x1b" not in done.stdout + done.stderr


def test_a_table_in_a_pipe_is_not_cut() -> None:
    head, row = watch().stdout.splitlines()
    assert head.split() == ["class", "top-1", "%"]
    assert row == "[/x] " + "wide " * 30 + "     50.0"


def test_quiet_says_nothing_but_the_result() -> None:
    done = watch("--quiet")
    assert done.stderr == ""
    assert "50.0" in done.stdout


def test_json_is_all_there_is_on_stdout() -> None:
    done = watch("--json")
    assert json.loads(done.stdout) == {"top1": 0.5}
    assert "epoch 2/2" in done.stderr


def test_a_terminal_shows_a_bar_with_time_left_and_live_numbers() -> None:
    shown = on_a_terminal()
    assert "\x1b[" in shown
    assert "epoch 2/2" in shown
    assert "loss 0.5000  train 90.0%" in shown
    assert "0:00:0" in shown
    assert "student by st [/x]: 2 epochs  loss 0.2500  train 87.5%  validation 50.0%" in shown
    assert "\x1b[31mred" not in shown
    assert "\\x1b[31mred" in shown


def test_a_narrow_terminal_folds_cells_and_drops_nothing() -> None:
    assert on_a_terminal("--quiet").count("wide") == 30


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
def test_a_terminal_without_colour_gets_no_escape_byte(environment: dict[str, str]) -> None:
    shown = on_a_terminal(**environment)
    assert "\x1b" not in shown
    assert "epoch 2/2" in shown


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["plain", "NO_COLOR", "dumb"])
def test_help_in_a_pipe_has_no_escape_byte(environment: dict[str, str]) -> None:
    done = subprocess.run([DISTILLAB, "--help"], capture_output=True, check=True, timeout=60, env=PLAIN | environment)
    assert b"\x1b" not in done.stdout + done.stderr


def test_help_on_a_terminal_without_colour_has_no_escape_byte() -> None:
    child = pexpect.spawn(
        str(DISTILLAB),
        ["train", "--help"],
        encoding="utf-8",
        timeout=60,
        env=PLAIN | {"TERM": "xterm", "NO_COLOR": "1"},
    )
    assert "\x1b" not in child.read()


def test_an_error_is_three_lines_at_most() -> None:
    error = ConfigError("many\nlines", where="a [/x]", hint="one\n\n two")
    assert error_lines(error) == "error: many; lines\n  where: a [/x]\n  try:   one; two"
    assert error_lines(DistillabError("no")) == "error: no"


def test_control_characters_are_spelt_out() -> None:
    assert printable("a\x1b[2Jb\x07\u202e") == "a\\x1b[2Jb\\x07\\u202e"
    assert printable("Käse 猫\tx\n") == "Käse 猫\tx\n"


def test_an_event_without_numbers_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().watching() as observe:
        for event in (
            StageStarted("s", "student", "hint", 1, 1),
            StepsDone("s", 1, 1),
            Note("n"),
            EpochEnded("s", 1, 1),
            StageEnded("s", 1),
            Note("n"),  # said before
        ):
            observe(event)
    assert capsys.readouterr().err.splitlines() == ["s: 1 epoch of 1 step", "n", "s  epoch 1/1"]


def photos(folder: Path, images: int = 40) -> Path:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    return folder / "photos"


def test_a_signal_ends_a_run_with_its_own_code(tmp_path: Path) -> None:
    photos(tmp_path)
    words = ["train", "--data", "photos", "--training.epochs", "1000", "--threads", "1", "--output"]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen([DISTILLAB, *words, run], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=PLAIN)
            )
            for run in ("interrupted", "terminated")
        ]
        ended = [end(child, number) for child, number in zip(children, (signal.SIGINT, signal.SIGTERM), strict=True)]
    assert [code for code, _ in ended] == [130, 143]
    assert ended[0][1].endswith("interrupted\n")
    assert all("Traceback" not in rest for _, rest in ended)
    assert not list(tmp_path.glob("*/result.json"))


def end(child: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal once a run has done an epoch; its exit code, and what it says after that."""
    assert child.stderr is not None
    next(line for line in child.stderr if "epoch" in line and "/1000" in line)
    child.send_signal(number)
    rest = child.stderr.read()
    return child.wait(timeout=60), rest


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{DISTILLAB} train --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=PLAIN)
    assert done.returncode in (0, 141)  # the help may fit into the pipe's buffer before the reader goes
    assert done.stderr == ""
