import pytest
import torch
from torch import nn

from distillab.errors import ShapeError
from distillab.models.catalog import build_model
from distillab.models.dropout import Dropout

# METHODS: trainable parameters with 10 classes, and as usually quoted (with the running means and variances).
COUNTS = {"cnn8": (4_756_170, 4_760_010), "cnn12": (1_993_162, 1_996_042), "cnn16": (705_402, 707_322)}
BLOCKS = {"cnn8": 2, "cnn12": 3, "cnn16": 4}
WIDTHS = {"cnn8": 64, "cnn12": 32, "cnn16": 16}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    model = build_model(name, 10)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    running = sum(b.numel() for key, b in model.state_dict().items() if "running" in key)
    assert (trainable, trainable + running) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("num_classes", [2, 100])
def test_other_numbers_of_classes_change_the_last_layer_only(name, num_classes):
    model = build_model(name, num_classes)
    # Each class costs 128 weights and a bias.
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name][0] + (num_classes - 10) * 129


@pytest.mark.parametrize("name", COUNTS)
def test_state_dict_has_the_published_layout(name):
    entries = ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    entries += ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    expected = [f"layer{stage}.{i}.{entry}" for stage in (1, 2, 3, 4) for i in range(BLOCKS[name]) for entry in entries]
    expected += ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"]
    state = build_model(name, 10).state_dict()
    assert list(state) == expected
    width = WIDTHS[name]
    assert state["layer1.0.conv.weight"].shape == (width, 3, 3, 3)
    assert state[f"layer4.{BLOCKS[name] - 1}.conv.weight"].shape == (8 * width, 8 * width, 3, 3)
    assert state["mlp.fc1.weight"].shape == (128, 8 * width)
    assert state["mlp.fc2.weight"].shape == (10, 128)


@pytest.mark.parametrize("name", COUNTS)
def test_maps_shrink_from_32_to_1(name):
    _, features = build_model(name, 10).tap(torch.rand(2, 3, 32, 32), [f"pool{i}" for i in (1, 2, 3, 4)])
    assert [tuple(feature.shape[2:]) for feature in features.values()] == [(15, 15), (7, 7), (3, 3), (1, 1)]
    width = WIDTHS[name]
    assert [feature.shape[1] for feature in features.values()] == [width, 2 * width, 4 * width, 8 * width]


def test_only_cnn8_drops_out_and_does_so_between_convolution_and_norm():
    dropouts = [m for m in build_model("cnn8", 10).modules() if isinstance(m, nn.Dropout)]
    assert [d.p for d in dropouts] == [0.2] * 8
    assert [type(m) for m in build_model("cnn8", 10).layer3[1]] == [nn.Conv2d, Dropout, nn.BatchNorm2d, nn.ReLU]
    for name in ("cnn12", "cnn16"):
        assert not [m for m in build_model(name, 10).modules() if isinstance(m, nn.Dropout)]


def test_logits_are_those_of_the_description_written_out():
    model = build_model("cnn16", 10, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval().double()
    state = model.state_dict()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    x = images - torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    x = x / torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64).view(3, 1, 1)
    for stage in (1, 2, 3, 4):
        for i in range(4):
            block = f"layer{stage}.{i}"
            x = nn.functional.conv2d(x, state[f"{block}.conv.weight"], state[f"{block}.conv.bias"], padding=1)
            mean, var = state[f"{block}.bn.running_mean"], state[f"{block}.bn.running_var"]
            x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
            x = x * state[f"{block}.bn.weight"].view(-1, 1, 1) + state[f"{block}.bn.bias"].view(-1, 1, 1)
            x = x.clamp(min=0)
        x = nn.functional.max_pool2d(x, 3, 2)
    x = (x.flatten(1) @ state["mlp.fc1.weight"].T + state["mlp.fc1.bias"]).clamp(min=0)
    x = x @ state["mlp.fc2.weight"].T + state["mlp.fc2.bias"]
    # The statistics are float32, as they were registered, so the images are normalised to that precision.
    torch.testing.assert_close(model(images), x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (32, 33)])
def test_another_image_size_is_refused(size):
    with pytest.raises(ShapeError, match="32"):
        build_model("cnn16", 10)(torch.rand(1, 3, *size))


@pytest.mark.parametrize("name", COUNTS)
def test_every_parameter_gets_a_gradient(name):
    model = build_model(name, 10)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for key, p in model.named_parameters() if "fc" in key)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_channels_last_gives_the_same_logits():
    model = build_model("cnn16", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)
