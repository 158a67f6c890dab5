"""What this machine has, and what is fast on it: to paste into an issue, or to choose settings by."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distillab import __version__
from distillab.runtime.device import choose_compute, has_fast_bfloat16, usable_cores
from distillab.runtime.rates import convolution_rate, copy_rate, matmul_rate
from distillab.runtime.run_dir import RUNS, device_name

_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "pillow", "safetensors", "pydantic", "cyclopts", "rich")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
_SECONDS_A_RATE = 0.15


def diagnose() -> dict[str, Any]:
    """Versions, devices, and rates measured in about two seconds.

    Returns:
        Ready for JSON: "distillab", "python", "platform", "libraries", "cpu", "accelerators", "precision" (what
        `auto` picks and why), "rates" (by device; teraflops, where a multiplication and an addition are two, and
        gigabytes a second) and "storage" (where runs would be written).
    """
    compute = choose_compute()
    devices = {"cpu": torch.device("cpu"), compute.device.type: compute.device}
    return {
        "distillab": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "cpu": _cpu(),
        "accelerators": _accelerators(),
        "precision": _precision(compute.device),
        "rates": {name: measure_rates(device) for name, device in devices.items()},
        "storage": _storage(RUNS),
    }


def _cpu() -> dict[str, Any]:
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        flags = set(line.partition(":")[2].split())
    return {
        "model": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
    }


def _accelerators() -> list[dict[str, Any]]:
    if torch.backends.mps.is_available():
        return [{"device": "mps", "name": platform.processor(), "fast_bfloat16": False}]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
                "fast_bfloat16": has_fast_bfloat16(torch.device("cuda", index)),
            }
        )
    return found


def _precision(device: torch.device) -> dict[str, str]:
    fast = has_fast_bfloat16(device)
    name = device_name(device)
    return {
        "device": device.type,
        "auto": "bfloat16" if fast else "float32",
        "why": f"{name} multiplies bfloat16 natively" if fast else f"{name} only emulates bfloat16",
    }


def measure_rates(device: torch.device) -> dict[str, float]:
    """How fast a device multiplies, convolves and copies.

    Args:
        device: Where.

    Returns:
        "matmul_<type>_teraflops" and "convolution_<type>_teraflops" for float32 and bfloat16 (a multiplication and an
        addition are two), "copy_gigabytes_per_second" (what is read and what is written, both counted).
    """
    rates: dict[str, float] = {}
    side, batch = (4096, 1024) if device.type == "cuda" else (320, 16)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        products = matmul_rate(device, dtype, side=side, budget=_SECONDS_A_RATE)
        convolutions = convolution_rate(device, dtype, batch=batch, channels=64, side=32, budget=_SECONDS_A_RATE)
        rates[f"matmul_{name}_teraflops"] = products / 1e12
        rates[f"convolution_{name}_teraflops"] = convolutions / 1e12
    rates["copy_gigabytes_per_second"] = copy_rate(device, count=2**24, budget=_SECONDS_A_RATE) / 1e9
    return rates


def _storage(folder: Path) -> dict[str, Any]:
    """Whether runs can be written where they would be, and how much room there is."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            writable = True
    except OSError:
        writable = False
    return {"folder": str(folder.absolute()), "writable": writable, "free_bytes": shutil.disk_usage(place).free}


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a list in Markdown.

    Args:
        report: What `diagnose` gave.
    """
    cpu, precision, storage = report["cpu"], report["precision"], report["storage"]
    libraries = ", ".join(f"{name} {version}" for name, version in report["libraries"].items())
    lines = [
        f"- distillab {report['distillab']}, Python {report['python']}, {report['platform']}",
        f"- libraries: {libraries}",
        f"- CPU: {cpu['model']}; {cpu['usable_cores']} of {cpu['cores']} cores usable, {cpu['torch_threads']} torch"
        f" threads; torch uses {cpu['torch_uses']}; has {', '.join(cpu['instructions']) or 'none of the fast types'}",
    ]
    lines += [_accelerator_line(found) for found in report["accelerators"]] or ["- accelerators: none"]
    lines.append(f"- precision `auto` on {precision['device']}: {precision['auto']}, since {precision['why']}")
    for device, rates in report["rates"].items():
        lines.append(f"- measured on {device}: {_rates_in_words(rates)}")
    room = f"{storage['free_bytes'] / 1e9:.0f} GB free" if storage["writable"] else "not writable"
    lines.append(f"- runs go to {storage['folder']}: {room}")
    return "\n".join(lines)


def _accelerator_line(found: Mapping[str, Any]) -> str:
    memory = f", {found['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in found else ""
    cuda = f", CUDA {found['cuda']}, cuDNN {found['cudnn']}" if "cuda" in found else ""
    bfloat16 = "fast" if found["fast_bfloat16"] else "slow"
    return f"- {found['device']}: {found['name']}{memory}{cuda}, bfloat16 {bfloat16}"


def _rates_in_words(rates: Mapping[str, float]) -> str:
    words = []
    for work in ("matmul", "convolution"):
        single, half = rates[f"{work}_float32_teraflops"], rates[f"{work}_bfloat16_teraflops"]
        words.append(f"{work} {single:.3g} TFLOP/s in float32, {half:.3g} in bfloat16 (x{half / single:.2g})")
    words.append(f"copy {rates['copy_gigabytes_per_second']:.3g} GB/s")
    return "; ".join(words)
