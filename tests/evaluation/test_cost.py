import time

import pytest
import torch
from torch import nn

from distillab.evaluation.cost import count_macs, count_parameters, latency
from distillab.models.catalog import build_model


def cnn_macs(width, blocks, num_classes):
    """MACs of a plain CNN by its description: 3x3 convolutions on maps of 32, 15, 7, 3 pixels, two linear layers."""
    total, before = 0, 3
    for stage, size in enumerate((32, 15, 7, 3)):
        after = width * 2**stage
        for _ in range(blocks):
            total += size * size * 9 * before * after
            before = after
    return total + before * 128 + 128 * num_classes


def resnet_macs(width, blocks, num_classes):
    """MACs of a bottleneck ResNet by its description."""
    total, before, size = 32 * 32 * 9 * 3 * width, width, 32
    for stage, count in enumerate(blocks):
        inner, outer = width * 2**stage, 4 * width * 2**stage
        for i in range(count):
            out = size // 2 if i == 0 and stage > 0 else size
            total += size * size * before * inner + out * out * 9 * inner * inner + out * out * inner * outer
            total += out * out * before * outer if i == 0 else 0
            before, size = outer, out
    return total + before * num_classes


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("cnn8", 4_756_170, cnn_macs(64, 2, 10)),
        ("cnn12", 1_993_162, cnn_macs(32, 3, 10)),
        ("cnn16", 705_402, cnn_macs(16, 4, 10)),
        ("resnet50", 23_520_842, resnet_macs(64, (3, 4, 6, 3), 10)),
        ("resnet71", 8_015_018, resnet_macs(32, (4, 6, 9, 4), 10)),
        ("resnet98", 2_831_578, resnet_macs(16, (6, 8, 12, 6), 10)),
    ],
)
def test_costs_of_the_six_are_those_of_their_descriptions(name, parameters, macs):
    model = build_model(name, 10)
    assert (count_parameters(model), count_macs(model, 32)) == (parameters, macs)


def test_macs_are_those_of_one_image_and_counting_them_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 25, 7))
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_macs(model, 5) == 25 * 9 * 3 * 4 + 4 * 25 * 7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_counting_the_deepest_model_takes_less_than_a_second():
    model = build_model("resnet98", 10)
    # Time of this process, which a busy machine does not stretch.
    start = time.process_time()
    count_macs(model, 32)
    assert time.process_time() - start < 1


def test_frozen_parameters_count_and_shared_ones_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 6 + 3
    assert count_parameters(model.requires_grad_(False)) == 21


def test_latency_is_a_median_within_its_quartiles():
    class Sleepy(nn.Module):
        def __init__(self):
            super().__init__()
            self.passes = 0

        def forward(self, images):
            assert images.shape == (3, 3, 8, 8)
            assert not self.training
            assert not torch.is_grad_enabled()
            self.passes += 1
            time.sleep(0.01 if self.passes % 2 else 0.03)
            return images

    model = Sleepy()
    measured = latency(model, 8, batch_size=3, repeats=8)
    assert 0.009 < measured.low_seconds <= measured.median_seconds <= measured.high_seconds
    assert measured.high_seconds >= 0.029
    assert model.training


class Starting(nn.Module):
    """Slow in its first three passes; then each other pass takes 10 or 40 milliseconds."""

    passes = 0

    def forward(self, images):
        self.passes += 1
        time.sleep(0.2 if self.passes <= 3 else 0.04 if self.passes % 2 else 0.01)
        return images


def test_the_first_passes_do_not_count_and_quartiles_lie_between_the_times_of_passes():
    model = Starting()
    measured = latency(model, 8, repeats=2)
    assert model.passes == 3 + 2
    assert 0.01 < measured.low_seconds < measured.high_seconds < 0.2


def test_latency_on_a_named_device_measures_a_copy():
    model = build_model("cnn16", 10)
    measured = latency(model, 32, repeats=2, device="cpu")
    assert 0 < measured.median_seconds < 5
    with pytest.raises(ValueError, match="2 repeats"):
        latency(model, 32, repeats=1)


@pytest.mark.gpu
def test_latency_on_a_gpu_waits_for_the_result():
    model = build_model("resnet50", 10)
    measured = latency(model, 32, batch_size=256, repeats=5, device="cuda")
    # 256 images of 1.3 GMACs each: no GPU does them in less.
    assert measured.low_seconds > 256 * 1.3e9 * 2 / 2e15
    assert not next(model.parameters()).is_cuda
