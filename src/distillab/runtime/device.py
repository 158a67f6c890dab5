"""Where a run computes and how: device, precision, memory format, threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from distillab.errors import ConfigError
from distillab.training.config import Execution, Precision

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """A device and how to use it.

    Attributes:
        device: Where tensors live.
        autocast_dtype: Type that matrix products run in; None for float32 throughout.
        execution: How training steps are run; never "auto".
        deterministic: Take only algorithms that give the same bits each time.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    execution: Execution = "eager"
    deterministic: bool = False

    @property
    def precision(self) -> str:
        """Name of the type that matrix products run in: "float32", "bfloat16"."""
        return str(self.autocast_dtype or torch.float32).removeprefix("torch.")

    def take(self, model: ModelT) -> ModelT:
        """Bring a model to the device, in the memory format that is fast there: that of its images."""
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    @property
    def records(self) -> bool:
        """Whether work is recorded and replayed (`Capture`). Compiled kernels are too, where there are graphs."""
        return self.execution == "captured" or (self.execution == "compiled" and self.device.type == "cuda")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run what is inside in the chosen precision."""
        if self.autocast_dtype is None:
            yield
        else:
            # Without its cache: weights change between the forward passes of one step's models, and a captured
            # graph must not hold copies made outside of it.
            with torch.autocast(self.device.type, dtype=self.autocast_dtype, cache_enabled=False):
                yield


def choose_compute(device: str = "auto", precision: Precision = "auto", *, deterministic: bool = False) -> Compute:
    """Pick the device and the precision it does well.

    Args:
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" takes bfloat16 where the hardware multiplies it natively, else float32.
        deterministic: See `Compute`.

    Raises:
        ConfigError: No such device here.
    """
    chosen = _find_device(device)
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(chosen) else "float32"
    return Compute(chosen, torch.bfloat16 if precision == "bfloat16" else None, deterministic=deterministic)


_STEPS_WORTH_CAPTURING = 50
_STEPS_WORTH_COMPILING = 100_000  # a minute, at half a millisecond a step


def choose_execution(wanted: Execution, device: torch.device, num_steps: int) -> Execution:
    """Pick how steps are run: what is quickest in all, warm-up included.

    On a GPU a capture costs seconds and compilation up to a minute or more, so it depends on how many steps there are
    to pay for them. On a CPU, compilation needs a C++ compiler, which few users have at hand, so "auto" does not
    compile there.

    Args:
        wanted: "auto", or one that is taken as it is.
        device: Where the steps run.
        num_steps: Of the whole run.

    Raises:
        ConfigError: Steps cannot be captured on this device.
    """
    if wanted == "captured" and device.type != "cuda":
        raise ConfigError(
            f"steps cannot be captured on a {device.type} device: that is a CUDA graph",
            where="training.execution",
            hint="take auto, eager or compiled",
        )
    if wanted != "auto":
        return wanted
    if device.type != "cuda" or num_steps < _STEPS_WORTH_CAPTURING:
        return "eager"
    return "captured" if num_steps < _STEPS_WORTH_COMPILING else "compiled"


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def best_seconds(work: Callable[[], object], device: torch.device, *, budget: float) -> float:
    """Time of one piece of work: the best of what fits into the budget, once at least, after one to warm up.

    Args:
        work: Is done from an idle device to an idle device.
        device: Where.
        budget: Seconds.

    Returns:
        Seconds.
    """
    work()
    wait_for(device)
    best, deadline = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return best


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; emulated it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'", where="device", hint="auto, cpu, cuda, cuda:1 or mps") from None
    there = {
        "cpu": device.index is None,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ConfigError(
            f"there is no device '{name}' here", where="device", hint="`distillab doctor` lists the devices"
        )
    return device


@contextlib.contextmanager
def computing(compute: Compute, threads: int | None) -> Iterator[None]:
    """Set up the process for training and evaluation inside; afterwards it is as it was.

    Threads, memory that is kept (`keep_memory`), cuDNN's choice of kernels by trial (unless the choice has to be the
    same each time), and float32 products in full: TensorFloat-32 rounds them to 10 bits.

    Args:
        compute: Device and precision.
        threads: See `cpu_threads`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_threads(threads))
        stack.enter_context(keep_memory())
        if compute.device.type == "cuda":
            exact = compute.deterministic
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=True, benchmark=not exact, deterministic=exact, allow_tf32=False)
            )
            if exact:
                stack.enter_context(_deterministic_algorithms())
        yield


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """What torch does otherwise raises an error inside, rather than giving other bits each time."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[int]:
    """Use so many CPU threads inside, and as many as before after it.

    Args:
        count: Threads; torch's own choice if None (OMP_NUM_THREADS, or one a core).

    Yields:
        The number in use: results on a CPU are exact for one number of threads only.
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """CPU cores that this process may use: all of the machine's where the system does not tell (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_MIB = 2**20
_TUNED_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_keepers = 0
_keepers_lock = threading.Lock()


@contextlib.contextmanager
def keep_memory() -> Iterator[None]:
    """Let freed tensors' memory stay with the process inside, for the next tensors.

    glibc asks the system for each large tensor's memory and gives it back when the tensor is freed, so every training
    step pays for fresh pages, zeroed one by one (docs/decisions/0007-cpu-path.md). Inside, it gives nothing back.

    Blocks may lie in each other and run in several threads. When the last one ends, unused memory goes back to the
    system, and large tensors are handled as glibc itself handles them in a process that has freed one of 32 MiB or
    more. Nothing happens where the C library is another, or the environment sets glibc's thresholds.
    """
    global _keepers
    with _keepers_lock:
        _keepers += 1
        _apply_thresholds(keep=True)
    try:
        yield
    finally:
        with _keepers_lock:
            _keepers -= 1
            _apply_thresholds(keep=_keepers > 0)


def release_memory() -> None:
    """Give what `keep_memory` keeps for later back to the system, once: to see how much is asked for anew."""
    libc = _tunable_glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _apply_thresholds(*, keep: bool) -> None:
    libc = _tunable_glibc()
    if libc is None:
        return
    if keep:
        if not libc.mallopt(_M_MMAP_THRESHOLD, 1024 * _MIB):
            libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the most that older versions take
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    else:
        # Where glibc's own adjustment ends; once it has been told a threshold it adjusts none any more.
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)


@functools.cache
def _tunable_glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and its thresholds are not the user's own."""
    if sys.platform != "linux" or any(name in os.environ for name in _TUNED_BY):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
