"""Processes that can be watched, and ended at a moment of one's choice."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distillab.__main__ import main
from distillab.training.checkpoint import CheckpointDir
from distillab.training.keeper import Keeper, Phase

_BUG = 70
_PATIENCE_SECONDS = 600.0  # on a machine that is busy otherwise everything takes many times as long


class Board:
    """What a child tells; it can be read when the child is dead.

    Attributes:
        step: The last step of the run that this process has made; 0 before its first.
        saving: 1 while a checkpoint is written.
        saved: Step of the last checkpoint that this process has written whole.
        started: 1 when a race may begin.
    """

    _NAMES = ("step", "saving", "saved", "started")

    def __init__(self) -> None:
        self.__dict__["_cells"] = memoryview(mmap.mmap(-1, 8 * len(self._NAMES))).cast("q")

    def __getattr__(self, name: str) -> int:
        return int(self._cells[self._NAMES.index(name)])

    def __setattr__(self, name: str, value: int) -> None:
        self._cells[self._NAMES.index(name)] = value


class Child:
    """A process that does some work, and what it has said on both streams.

    Args:
        work: Is given the board; returns the exit code, None for 0.
        board: Shared with others, or None for one of its own.
    """

    def __init__(self, work: Callable[[Board], int | None], board: Board | None = None) -> None:
        self.board = board or Board()
        self.code: int | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._live(work)

    def _live(self, work: Callable[[Board], int | None]) -> None:
        code: int | None = _BUG
        try:
            for stream in (1, 2):
                os.dup2(self._said.fileno(), stream)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = work(self.board)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        finally:
            os._exit(code or 0)

    @property
    def has_ended(self) -> bool:
        """Whether it is dead; then `code` says how: negative by a signal."""
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def reaches(self, is_so: Callable[[Board], bool]) -> bool:
        """Wait for a moment; False where the child ends before it."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not is_so(self.board):
            if self.has_ended or time.monotonic() > until:
                return False
            time.sleep(0.0003)
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still lives."""
        if not self.has_ended:
            os.kill(self._pid, number)

    def end(self) -> int:
        """Wait for its end; one that takes too long is killed, and that is told. Gives the exit code."""
        self.reaches(lambda board: False)
        if not self.has_ended:
            self._said.write(f"killed: it has not ended in {_PATIENCE_SECONDS:.0f} seconds\n".encode())
        self.send(signal.SIGKILL)
        while not self.has_ended:
            time.sleep(0.001)
        assert self.code is not None
        return self.code

    @property
    def said(self) -> str:
        """All that it has said so far."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")


def watch(
    board: Board, rng: random.Random, *, saved: float = 1.0, pace: float = 0.0, full_at: int | None = None
) -> None:
    """Have this process write on the board how far it is.

    Args:
        board: Where to.
        rng: Of this process alone.
        saved: Share of the steps after which a run that saves at every step does so.
        pace: Longest pause before each flush to disk in a save, in seconds: it makes saves long enough to be hit.
        full_at: Step from which on the system takes no file of more than some bytes; None: it takes all.
    """
    torch.set_num_threads(1)
    after_step, is_due, save, fsync = Phase.after_step, Keeper.is_due, CheckpointDir.save, os.fsync

    def telling(self: Phase, steps: int, **more: Any) -> None:
        board.step = self._steps_before + steps
        if board.step == full_at:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(10_000), hard))
        after_step(self, steps, **more)

    def sometimes(self: Keeper) -> bool:
        return is_due(self) and (rng.random() < saved or self.asked is not None)

    def saving(self: CheckpointDir, step: int, *what: Any) -> Path:
        board.saving = 1
        place = save(self, step, *what)
        board.saving, board.saved = 0, step
        return place

    def slow_fsync(handle: int) -> None:
        if board.saving:
            time.sleep(rng.uniform(0.0, pace))
        fsync(handle)

    Phase.after_step, Keeper.is_due = telling, sometimes  # type: ignore[method-assign]
    CheckpointDir.save, os.fsync = saving, slow_fsync  # type: ignore[method-assign, assignment]


def command(
    words: list[str], rng: random.Random, *, privileged: bool = True, **watching: Any
) -> Callable[[Board], int]:
    """The work of running words through the program's own `main`, watched.

    Args:
        words: Those after the program's name.
        rng: Of the process alone.
        privileged: With root's leave to write where nobody may, if root it is.
        **watching: See `watch`.
    """

    def work(board: Board) -> int:
        if not privileged:
            _drop_capabilities()
        watch(board, rng, **watching)
        return main(words)

    return work


def _drop_capabilities() -> None:
    """Make permissions count for root, too: what capset(2) does with nothing set."""
    version_3, this_process = 0x20080522, 0
    header, nothing = (ctypes.c_uint32 * 2)(version_3, this_process), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
