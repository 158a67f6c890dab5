"""Paths timed in turns: what each needs, how many steps and rounds there is time for, and who comes next."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from distillab.runtime.device import default_memory

MIN_ROUNDS = 2
_TURN_SECONDS = 3.0
_MOST_STEPS = 400


class Loop(Protocol):
    """A training loop that goes on where it was at each call."""

    @property
    def warm_up_steps(self) -> int:
        """So many steps at the beginning do other work than those that follow."""

    def seconds(self, steps: int) -> float:
        """Wall time of so many steps, from an idle device to an idle device, after one that is not timed.

        That one kernel or another has to be found first, or memory be fetched again that another path has given back,
        happens once and not at every step.
        """


@dataclass(frozen=True)
class WarmUp:
    """What it took to get a loop going.

    Attributes:
        loop: Ready to be timed.
        seconds: To build it and to do its first steps: data placed, kernels chosen, steps recorded, a teacher's
            answers collected.
        step_seconds: About how long a step takes from now on.
        peak_memory_bytes: See `MemoryMeter`.
    """

    loop: Loop
    seconds: float
    step_seconds: float
    peak_memory_bytes: int | None


def warm_up(make: Callable[[], Loop], device: torch.device) -> WarmUp:
    """Build a loop and do its first steps.

    Args:
        make: Builds it.
        device: Where it computes.
    """
    meter = MemoryMeter(device)
    started = time.perf_counter()
    loop = make()
    if loop.warm_up_steps > 1:
        loop.seconds(loop.warm_up_steps - 1)
    step_seconds = loop.seconds(1)
    return WarmUp(loop, time.perf_counter() - started - step_seconds, step_seconds, meter.peak())


class MemoryMeter:
    """How far memory has risen above what it was when the meter was made.

    On CUDA what torch has allocated on the device; on Linux the resident set of this process, worker processes left
    out; elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with default_memory():  # what the C library keeps for later is given back: a rise would be hidden in it
            gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident("VmRSS") if device.type == "cpu" and _forget_peak() else None

    def peak(self) -> int | None:
        """The highest rise so far, in bytes; None where it is not known."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        highest = _resident("VmHWM")
        return None if highest is None else max(0, highest - self._before)


def _forget_peak() -> bool:
    """Let Linux take the peak of the resident set anew from now on; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    """A field of this process's status, in bytes."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


@dataclass(frozen=True)
class Schedule:
    """How often the paths take turns, and how many steps each does in a turn."""

    rounds: int
    steps: Mapping[str, int]


def make_schedule(step_seconds: Mapping[str, float], *, rounds: int, seconds: float) -> Schedule:
    """Fit rounds into the time there is: turns of equal length, fewer rounds where even one step a turn is too much.

    Args:
        step_seconds: Of each path.
        rounds: At most.
        seconds: In all; `MIN_ROUNDS` rounds of one step are made even if they take longer.
    """
    turn = min(_TURN_SECONDS, seconds / (rounds * len(step_seconds)))
    steps = {path: max(1, min(_MOST_STEPS, int(turn / each) - 1)) for path, each in step_seconds.items()}
    round_seconds = sum((steps[path] + 1) * each for path, each in step_seconds.items())
    return Schedule(max(MIN_ROUNDS, min(rounds, int(seconds / round_seconds))), steps)


def take_turns(loops: Mapping[str, Loop], schedule: Schedule, *, batch_size: int) -> dict[str, tuple[float, ...]]:
    """Time the paths in turns: first, second, third, first, ...

    What else the machine does then slows all of them alike, and those of one round can be compared.

    Args:
        loops: By path, in the order of their turns.
        schedule: Rounds and steps.
        batch_size: Images a step.

    Returns:
        Of each path its images a second, one number a round.
    """
    rates: dict[str, list[float]] = {path: [] for path in loops}
    for _ in range(schedule.rounds):
        for path, loop in loops.items():
            steps = schedule.steps[path]
            rates[path].append(steps * batch_size / loop.seconds(steps))
    return {path: tuple(values) for path, values in rates.items()}
