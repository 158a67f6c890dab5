"""Our steps under torch's profiler: a trace to look at, and how many kernels they launch."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from distillab.bench.measure import Loop
from distillab.errors import ConfigError
from distillab.runtime.files import replacing

_TRACED_STEPS = 3


def check_trace_path(path: Path) -> None:
    """Refuse names that a reader of traces would take for something else.

    Raises:
        ConfigError: It does not end in .json.
    """
    if path.suffix != ".json":
        raise ConfigError(
            f"a trace is a JSON file, not '{path.name}'", where="profile", hint=f"name it {path.stem}.json"
        )


def write_trace(loop: Loop, path: Path, device: torch.device) -> None:
    """Write a trace of some steps, whole or not at all, in the format that Perfetto and Chrome open.

    Args:
        loop: Is warmed up first.
        path: The file.
        device: Where the loop computes.

    Raises:
        StorageError: The folder or disk refuses.
    """
    with replacing(path) as temporary:
        loop.seconds(loop.warm_up_steps, run_in=False)
        _profiled(loop, _TRACED_STEPS, device).export_chrome_trace(str(temporary))


def count_launches(loop: Loop, device: torch.device) -> int | None:
    """Kernels, copies and fills of a step on a GPU; None elsewhere.

    Args:
        loop: Warmed up.
        device: Where the loop computes.
    """
    if device.type != "cuda":
        return None
    events = _profiled(loop, 1, device).events()  # type: ignore[no-untyped-call]
    return len([event for event in events if event.device_type.name == "CUDA"])


def _profiled(loop: Loop, steps: int, device: torch.device) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "1000")  # else it logs to stderr that there is no GPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    profiler = profile(activities=activities, acc_events=True)  # one cycle: torch 2.11 warns of others without it
    with profiler:
        loop.seconds(steps, run_in=False)
    return profiler
