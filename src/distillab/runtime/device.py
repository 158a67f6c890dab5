"""Where a run computes and how: device, precision, memory format, threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from distillab.errors import ConfigError
from distillab.training.config import Precision


@dataclass(frozen=True)
class Compute:
    """A device and how to use it.

    Attributes:
        device: Where tensors live.
        autocast_dtype: Type that matrix products run in; None for float32 throughout.
        memory_format: Of images and convolution weights.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    memory_format: torch.memory_format = torch.channels_last

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


def choose_compute(device: str = "auto", precision: Precision = "auto") -> Compute:
    """Pick the device and the precision it does well.

    Args:
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" takes bfloat16 where the hardware multiplies it natively, else float32.

    Raises:
        ConfigError: No such device here.
    """
    chosen = _find_device(device)
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(chosen) else "float32"
    return Compute(chosen, torch.bfloat16 if precision == "bfloat16" else None)


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
