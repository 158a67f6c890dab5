"""How fast a device could do the work at best: what it multiplies, copies and launches, held against a step's needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillab.evaluation.cost import count_macs
from distillab.models.classifier import evaluation_mode
from distillab.runtime.device import best_seconds
from distillab.runtime.rates import convolution_rate, copy_rate, matmul_rate

_SECONDS_A_RATE = 0.5
_LAUNCHES = 1000


@dataclass(frozen=True)
class Rates:
    """What a device reaches on plain work.

    Attributes:
        flops_per_second: Of a large matrix product or convolution, whichever is faster (torch leaves them to different
            libraries), by type; a multiplication and an addition are two.
        bytes_per_second: Read and written by a large copy.
        launch_seconds: Between two tiny kernels of a recorded graph; None off CUDA, where nothing is launched.
    """

    flops_per_second: dict[torch.dtype, float]
    bytes_per_second: float
    launch_seconds: float | None

    def as_dict(self) -> dict[str, float | None]:
        """The rates, ready for JSON."""
        products = {
            f"products_{str(dtype).removeprefix('torch.')}_flops_per_second": rate
            for dtype, rate in self.flops_per_second.items()
        }
        return {**products, "copy_bytes_per_second": self.bytes_per_second, "launch_seconds": self.launch_seconds}


def measure_rates(device: torch.device, dtypes: set[torch.dtype]) -> Rates:
    """Measure a device, in a few seconds.

    Args:
        device: Which.
        dtypes: Types that products are wanted in.
    """
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1024
    batch, channels, size = (1024, 256, 32) if on_gpu else (32, 128, 16)

    def products(dtype: torch.dtype) -> float:
        convolved = convolution_rate(device, dtype, batch=batch, channels=channels, side=size, budget=_SECONDS_A_RATE)
        return max(matmul_rate(device, dtype, side=side, budget=_SECONDS_A_RATE), convolved)

    return Rates(
        {dtype: products(dtype) for dtype in dtypes},
        copy_rate(device, count=2**28 if on_gpu else 2**24, budget=_SECONDS_A_RATE),
        _launch_seconds(device),
    )


def _launch_seconds(device: torch.device) -> float | None:
    """Time of a kernel that does nothing to speak of, one after the other in a graph: no step has cheaper ones."""
    if device.type != "cuda":
        return None
    place = torch.zeros(1, device=device)
    place.add_(1)  # a kernel is loaded at its first launch, which cannot be recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            place.add_(1)
    return best_seconds(graph.replay, device, budget=_SECONDS_A_RATE) / _LAUNCHES


@dataclass(frozen=True)
class Needs:
    """What a step cannot do without, an image.

    Attributes:
        flops: Of convolutions and matrix products.
        values: Activations written and read in memory, in numbers.
    """

    flops: float
    values: float

    def __add__(self, other: Needs) -> Needs:
        return Needs(self.flops + other.flops, self.values + other.values)

    def shared_by(self, count: int) -> Needs:
        """The part of each of so many for whom it is done once.

        Args:
            count: How many.
        """
        return Needs(self.flops / count, self.values / count)


def inference_needs(model: nn.Module, image_size: int) -> Needs:
    """Of a forward pass: what each convolution or linear layer gives is written once and read once.

    An optimistic count: all that stands between two such layers (norms, activations, pooling, dropout) is taken as
    done on the way, and weights as staying in caches.

    Args:
        model: Maps images to logits.
        image_size: Height and width of its input in pixels.
    """
    return Needs(2.0 * count_macs(model, image_size), 2.0 * _activations(model, image_size))


def training_needs(model: nn.Module, image_size: int) -> Needs:
    """Of a forward and a backward pass: three times the operations of the forward pass.

    An activation is written and read going forward, read once more going back, and its gradient is written and read:
    five times in all. As optimistic as `inference_needs`.

    Args:
        model: Maps images to logits.
        image_size: Height and width of its input in pixels.
    """
    return Needs(6.0 * count_macs(model, image_size), 5.0 * _activations(model, image_size))


@torch.no_grad()
def _activations(model: nn.Module, image_size: int) -> int:
    """Numbers that convolutions and linear layers give for one image."""
    count = 0

    def add(_module: nn.Module, _args: object, output: Tensor) -> None:
        nonlocal count
        count += output.numel()

    hooks = [
        module.register_forward_hook(add)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    parameter = next(model.parameters())
    try:
        with evaluation_mode(model):
            model(torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return count


def bound(needs: Needs, rates: Rates, *, dtype: torch.dtype, batch_size: int, launches: int | None) -> float:
    """The most images a second that a device could do: the slowest of three things, each at its best.

    1 / max( FLOPs / matrix rate, bytes / copy rate, launches * launch time / images a step )

    Args:
        needs: Of an image.
        rates: Of the device.
        dtype: That matrix products run in and activations are kept in.
        batch_size: Images a step, of all students.
        launches: Kernels a step; None where nothing is launched.
    """
    seconds = [
        needs.flops / rates.flops_per_second[dtype],
        needs.values * dtype.itemsize / rates.bytes_per_second,
    ]
    if launches is not None and rates.launch_seconds is not None:
        seconds.append(launches * rates.launch_seconds / batch_size)
    return 1.0 / max(seconds)
