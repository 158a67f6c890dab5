"""What a device reaches on plain work: products, convolutions, copies of random numbers (of zeros it is faster)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from distillab.runtime.device import best_seconds


def matmul_rate(device: torch.device, dtype: torch.dtype, *, side: int, budget: float) -> float:
    """Operations a second of a matrix product; a multiplication and an addition are two.

    Args:
        device: Where.
        dtype: Of the matrices.
        side: Of the matrices, which are square.
        budget: Seconds to spend.
    """
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: left @ right, device, budget=budget)


def convolution_rate(
    device: torch.device, dtype: torch.dtype, *, batch: int, channels: int, side: int, budget: float
) -> float:
    """Operations a second of a 3x3 convolution, channels last; a multiplication and an addition are two.

    Args:
        device: Where.
        dtype: Of images and kernels.
        batch: Images.
        channels: Of the images before and after it.
        side: Of the images.
        budget: Seconds to spend.
    """
    images = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    kernels = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    images, kernels = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (images, kernels))
    operations = 2 * images.numel() * channels * 9
    return operations / best_seconds(lambda: F.conv2d(images, kernels, padding=1), device, budget=budget)


def copy_rate(device: torch.device, *, count: int, budget: float) -> float:
    """Bytes a second that a copy reads and writes, both counted.

    Args:
        device: Where.
        count: float32 numbers that are copied.
        budget: Seconds to spend.
    """
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / best_seconds(lambda: target.copy_(source), device, budget=budget)
