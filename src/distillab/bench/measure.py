"""Paths timed in turns: what each needs, how many steps and rounds there is time for, and who comes next."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch.nn import functional as F

from distillab.runtime.device import release_memory

MIN_ROUNDS = 2
_TURN_SECONDS = 3.0
_MOST_STEPS = 400
_LONG_SECONDS = 5.0


class Loop(Protocol):
    """A training loop that goes on where it was at each call."""

    @property
    def warm_up_steps(self) -> int:
        """So many steps at the beginning do other work than those that follow."""

    def seconds(self, steps: int, *, run_in: bool) -> float:
        """Wall time of so many steps, from an idle device to an idle device.

        Args:
            steps: At least 1.
            run_in: Do a step before them that is not timed: what another path has pushed out of caches, and memory that
                was given back, is fetched again, once and not at every step.
        """


LoopT = TypeVar("LoopT", bound=Loop, covariant=True)


@dataclass(frozen=True)
class WarmUp(Generic[LoopT]):
    """What it took to get a loop going.

    Attributes:
        loop: Ready to be timed.
        seconds: To build it and to do its first steps: data placed, kernels chosen, steps recorded, a teacher's
            answers collected. What torch loads at its first use is there before.
        step_seconds: About how long a step takes from now on.
        peak_memory_bytes: See `MemoryMeter`.
    """

    loop: LoopT
    seconds: float
    step_seconds: float
    peak_memory_bytes: int | None


def warm_up(make: Callable[[], LoopT], device: torch.device) -> WarmUp[LoopT]:
    """Build a loop and do its first steps.

    Args:
        make: Builds it.
        device: Where it computes.
    """
    _load_libraries(device)
    meter = MemoryMeter(device)
    started = time.perf_counter()
    loop = make()
    first = loop.seconds(loop.warm_up_steps, run_in=False)
    seconds = time.perf_counter() - started
    step_seconds = first / loop.warm_up_steps
    if not _is_long(step_seconds):
        step_seconds = loop.seconds(1, run_in=True)
    return WarmUp(loop, seconds, step_seconds, meter.peak())


def _load_libraries(device: torch.device) -> None:
    """Train a kernel for one step: else what torch loads at its first use counts as the first path's."""
    kernel = torch.zeros(8, 3, 3, 3, device=device, requires_grad=True)
    F.conv2d(torch.zeros(8, 3, 8, 8, device=device), kernel).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.Adam([kernel]).step()


def _is_long(step_seconds: float) -> bool:
    """Whether what comes with a first step hardly shows, and another one would take too much time."""
    return step_seconds > _LONG_SECONDS


class MemoryMeter:
    """How far memory has risen above what it was when the meter was made.

    On CUDA what torch has allocated on the device; on Linux the resident set of this process, worker processes left
    out; elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        release_memory()  # a rise would be hidden in it
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
class Turn:
    """What a path does when it is its turn: so many steps, after one that is not timed or without."""

    steps: int
    run_in: bool


def make_schedule(step_seconds: Mapping[str, float], *, rounds: int, seconds: float) -> tuple[int, dict[str, Turn]]:
    """Fit rounds into the time there is: turns of equal length, fewer rounds where even one step a turn is too much.

    Args:
        step_seconds: Of each path.
        rounds: At most.
        seconds: In all; `MIN_ROUNDS` rounds of one step are made even if they take longer.

    Returns:
        The number of rounds, and each path's turn.
    """
    longest = min(_TURN_SECONDS, seconds / (rounds * len(step_seconds)))
    turns = {
        path: Turn(max(1, min(_MOST_STEPS, int(longest / each) - 1)), run_in=not _is_long(each))
        for path, each in step_seconds.items()
    }
    round_seconds = sum((turns[path].steps + turns[path].run_in) * each for path, each in step_seconds.items())
    return max(MIN_ROUNDS, min(rounds, int(seconds / round_seconds))), turns


def take_turns(
    loops: Mapping[str, Loop], turns: Mapping[str, Turn], *, rounds: int, images_a_step: Mapping[str, int]
) -> dict[str, tuple[float, ...]]:
    """Time the paths in turns: first, second, third, first, ...

    What else the machine does then slows all of them alike, and those of one round can be compared.

    Args:
        loops: By path, in the order of their turns.
        turns: By path.
        rounds: How often each has its turn.
        images_a_step: By path; of all its students.

    Returns:
        Of each path its images a second, one number a round.
    """
    rates: dict[str, list[float]] = {path: [] for path in loops}
    for _ in range(rounds):
        for path, loop in loops.items():
            turn = turns[path]
            rates[path].append(turn.steps * images_a_step[path] / loop.seconds(turn.steps, run_in=turn.run_in))
    return {path: tuple(values) for path, values in rates.items()}
