"""Ctrl-C and SIGTERM: the first one is heard at the end of a step, the second one at once. Imports no torch."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers that somebody wants the process to stop.

    Attributes:
        asked: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals instead of being stopped by them: whoever works inside looks at `asked` now and then.

        A second signal does what the first would have done outside. Outside of the main thread, where Python delivers
        no signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}

        def hear(number: int, frame: FrameType | None) -> None:
            if self.asked is None:
                self.asked = signal.Signals(number)
                return
            _act(number, frame, before[signal.Signals(number)])

        try:
            for number in _SIGNALS:
                signal.signal(number, hear)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _act(number: int, frame: FrameType | None, handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
    """Do what the handler says; where that is the system's business, let the system do it."""
    if callable(handler):
        handler(number, frame)
    elif handler is not signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def resume_command(home: Path, *, allow_code: bool) -> str:
    """The words that make a run go on."""
    return shlex.join(["distillab", "resume", str(home), *(["--allow-code"] if allow_code else [])])
