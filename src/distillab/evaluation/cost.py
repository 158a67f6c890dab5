"""What a model costs: parameters, multiply-accumulates, seconds."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distillab.models.classifier import evaluation_mode

WARM_UPS = 3


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        median_seconds: Half of the passes took less.
        low_seconds: A quarter took less.
        high_seconds: A quarter took more.
    """

    median_seconds: float
    low_seconds: float
    high_seconds: float


def count_parameters(model: nn.Module) -> int:
    """Numbers that training sets: elements of all parameters, frozen ones too, shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image, in evaluation mode.

    Half of the floating-point operations that torch counts; biases, norms, activations and pooling are left out,
    as usual. The model runs once, on its own device, and stays as it is.

    Args:
        model: Any module that maps images to logits.
        image_size: Height and width of its input in pixels.
    """
    counter = FlopCounterMode(display=False)
    with evaluation_mode(model), torch.no_grad(), counter:
        model(_images(model, 1, image_size))
    return int(counter.get_total_flops()) // 2


def latency(
    model: nn.Module,
    image_size: int,
    *,
    batch_size: int = 1,
    repeats: int = 30,
    device: torch.device | str | None = None,
) -> Latency:
    """Time of a forward pass in evaluation mode, with its spread.

    Every pass is timed apart, after a few that are not; on a GPU from the first kernel to the end of the last, by
    events. The model stays as it is.

    Args:
        model: Any module that maps images to logits.
        image_size: Height and width of its input in pixels.
        batch_size: Images a pass.
        repeats: Timed passes, at least 2.
        device: Where to measure, with a copy of the model; where the model is if not given.

    Returns:
        Median and quartiles, in seconds a pass (not an image).

    Raises:
        ValueError: Fewer than 2 repeats.
    """
    if repeats < 2:
        raise ValueError(f"a spread needs at least 2 repeats, not {repeats}")
    measured = model if device is None else copy.deepcopy(model).to(device)
    images = _images(measured, batch_size, image_size)
    with evaluation_mode(measured), torch.no_grad():
        for _ in range(WARM_UPS):
            measured(images)
        timer = _seconds_on_gpu if images.is_cuda else _seconds_on_cpu
        seconds = [timer(measured, images) for _ in range(repeats)]
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(median, low, high)


def _images(model: nn.Module, batch_size: int, image_size: int) -> torch.Tensor:
    parameter = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch_size, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)


def _seconds_on_cpu(model: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def _seconds_on_gpu(model: nn.Module, images: torch.Tensor) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(images.device)
    start.record()
    model(images)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
