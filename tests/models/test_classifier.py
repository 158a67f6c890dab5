import math

import pytest
import torch
from torch import nn

from distillab.errors import ConfigError, ShapeError
from distillab.models.catalog import build_model
from distillab.models.classifier import (
    Normalize,
    NormalizedModel,
    evaluation_mode,
    get_normalization,
    set_normalization,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def flat_linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    images = torch.rand(2, 3, 4, 4)
    out = Normalize(MEAN, STD)(images)
    for channel in range(3):
        expected = (images[:, channel].double() - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(out[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_normalize_leaves_images_alone_without_statistics():
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    assert torch.equal(Normalize()(images), before)
    Normalize(MEAN, STD)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("mean", "std", "field"),
    [
        ((0.5, 0.5), (1.0, 1.0, 1.0), "mean"),
        ((0.5, 0.5, math.nan), (1.0, 1.0, 1.0), "mean"),
        ((0.5, 0.5, 0.5), (1.0, 1.0, math.inf), "std"),
        ((0.5, 0.5, 0.5), (1.0, 0.0, 1.0), "std"),
        ((0.5, 0.5, 0.5), (1.0, -1.0, 1.0), "std"),
    ],
)
def test_impossible_statistics_are_refused_by_name(mean, std, field):
    with pytest.raises(ConfigError) as caught:
        Normalize(mean, std)
    assert caught.value.where == field


@pytest.mark.parametrize("images", [torch.rand(2, 1, 32, 32), torch.rand(3, 32, 32), torch.rand(2, 32, 32, 3)])
def test_other_than_three_channels_are_refused(images):
    with pytest.raises(ShapeError, match="N, 3, H, W"):
        Normalize()(images)


def test_bytes_are_refused_with_the_way_out():
    with pytest.raises(ShapeError, match="255"):
        build_model("cnn16", 10)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_normalization_is_no_part_of_the_state_dict():
    model = build_model("cnn16", 10, mean=MEAN, std=STD)
    assert not [name for name in model.state_dict() if "normalize" in name]
    assert {"normalize.mean", "normalize.std"} <= {name for name, _ in model.named_buffers()}


def test_statistics_come_back_as_the_decimals_that_went_in():
    model = build_model("cnn16", 10)
    assert get_normalization(model) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    buffer = model.bfloat16().normalize.mean
    set_normalization(model, MEAN, STD)
    assert get_normalization(model) == (MEAN, STD)
    assert model.normalize.mean is buffer


def test_the_model_normalises_before_its_first_layer():
    # In training mode: BatchNorm keeps the signal of a new network alive.
    model = build_model("cnn16", 10, mean=MEAN, std=STD)
    plain = build_model("cnn16", 10)
    plain.load_state_dict(model.state_dict())
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(model(images), plain(normalised))
    assert not torch.allclose(model(images), plain(images), atol=0.01)


def test_a_foreign_module_is_normalised_too_and_keeps_its_names():
    inner = flat_linear()
    model = NormalizedModel(inner, 5, mean=MEAN, std=STD)
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(model(images), inner(Normalize(MEAN, STD)(images)))
    assert model.published() is inner
    assert get_normalization(model) == (MEAN, STD)
    assert model.spec == "torch.nn.modules.container:Sequential"


def test_a_foreign_module_that_returns_no_logits_is_refused():
    class Pair(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :5], images

    with pytest.raises(ShapeError, match="tuple"):
        NormalizedModel(Pair(), 5)(torch.rand(2, 3, 4, 4))
    with pytest.raises(ShapeError, match="5 classes"):
        NormalizedModel(nn.Identity(), 5)(torch.rand(2, 3, 4, 4))
    with pytest.raises(ShapeError, match="7 classes"):
        NormalizedModel(flat_linear(), 7)(torch.rand(2, 3, 4, 4))
    assert NormalizedModel(Pair(), 5, output=lambda pair: pair[0])(torch.rand(2, 3, 4, 4)).shape == (2, 5)


def test_a_module_without_normalisation_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="NormalizedModel"):
        set_normalization(nn.Linear(2, 2), MEAN, STD)
    with pytest.raises(ConfigError, match="build_model"):
        get_normalization(nn.Linear(2, 2))


def test_evaluation_mode_restores_every_submodule_also_after_an_error():
    model = build_model("cnn8", 10).train()
    model.layer2.eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    with pytest.raises(ShapeError), evaluation_mode(model):
        model(torch.rand(1, 3, 8, 8))
    assert [module.training for module in model.modules()] == before
    assert {True, False} == set(before)
