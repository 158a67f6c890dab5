from __future__ import annotations

import pytest
import torch
from torch import nn

from distillab.bench.bounds import Needs, Rates, bound, inference_needs, measure_rates, training_needs

RATES = Rates({torch.float32: 1000.0, torch.bfloat16: 4000.0}, bytes_per_second=800.0, launch_seconds=0.5)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.head(torch.relu(self.conv(images)).mean(dim=(2, 3)))
        return features


def test_needs_are_counted_by_hand():
    # 8x8 pixels: the convolution does 8*8*4*27 = 6912 multiplications and gives 256 numbers, the layer 8 and 2.
    assert inference_needs(Small(), 8) == Needs(flops=2 * 6920, values=2 * 258)
    assert training_needs(Small(), 8) == Needs(flops=6 * 6920, values=5 * 258)
    assert inference_needs(Small(), 8) + Needs(1.0, 2.0) == Needs(13841.0, 518.0)


def test_counting_leaves_the_model_as_it_was():
    model = Small().train()
    inference_needs(model, 8)
    assert model.training
    assert not model.conv._forward_hooks


@pytest.mark.parametrize(
    ("needs", "dtype", "launches", "expected"),
    [
        (Needs(100.0, 2.0), torch.float32, None, 10.0),  # 0.1 s of products, 0.01 s of bytes
        (Needs(100.0, 2.0), torch.bfloat16, None, 40.0),
        (Needs(100.0, 40.0), torch.float32, None, 5.0),  # 160 bytes
        (Needs(100.0, 40.0), torch.bfloat16, None, 10.0),  # 80 bytes
        (Needs(100.0, 2.0), torch.float32, 10, 1.6),  # 5 s for 8 images
    ],
)
def test_the_slowest_of_three_things_is_the_bound(needs, dtype, launches, expected):
    assert bound(needs, RATES, dtype=dtype, batch_size=8, launches=launches) == pytest.approx(expected)


def test_a_cpu_is_measured():
    rates = measure_rates(torch.device("cpu"), {torch.float32})
    assert 1e8 < rates.flops_per_second[torch.float32] < 1e14
    assert 1e8 < rates.bytes_per_second < 1e13
    assert rates.launch_seconds is None
    assert set(rates.as_dict()) == {"products_float32_flops_per_second", "copy_bytes_per_second", "launch_seconds"}


@pytest.mark.gpu
def test_a_gpu_is_measured():
    rates = measure_rates(torch.device("cuda"), {torch.float32, torch.bfloat16})
    assert rates.flops_per_second[torch.bfloat16] > rates.flops_per_second[torch.float32] > 1e12
    assert rates.launch_seconds is not None
    assert 1e-8 < rates.launch_seconds < 1e-4
