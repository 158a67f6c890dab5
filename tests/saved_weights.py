"""Weights as tests save them: of a model, of the published files, of nothing at all."""

import torch

from distillab.models.catalog import build_model
from distillab.models.weights import save_classic, save_weights

SAVE = {".safetensors": save_weights, ".pth": save_classic}
BN = ("weight", "bias", "running_mean", "running_var")


def tiny():
    """A tensor of each awkward sort: matrix, scalar integer, half precision, empty."""
    return {
        "fc.weight": torch.arange(6.0).reshape(2, 3),
        "fc.bias": torch.tensor([0.5, -0.5], dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }


def conv_entries(prefix, out_channels, in_channels, size):
    return {f"{prefix}.weight": torch.randn(out_channels, in_channels, size, size)}


def norm_entries(prefix, channels):
    entries = {f"{prefix}.{name}": torch.rand(channels) for name in BN}
    return {**entries, f"{prefix}.num_batches_tracked": torch.tensor(3)}


def published_cnn16(num_classes):
    """A state dict in the published layout, written from its description and not from the model."""
    state, before = {}, 3
    for stage, width in ((1, 16), (2, 32), (3, 64), (4, 128)):
        for i in range(4):
            state |= conv_entries(f"layer{stage}.{i}.conv", width, before, 3)
            state[f"layer{stage}.{i}.conv.bias"] = torch.randn(width)
            state |= norm_entries(f"layer{stage}.{i}.bn", width)
            before = width
    state |= {"mlp.fc1.weight": torch.randn(128, 128), "mlp.fc1.bias": torch.randn(128)}
    return state | {"mlp.fc2.weight": torch.randn(num_classes, 128), "mlp.fc2.bias": torch.randn(num_classes)}


def published_resnet98(num_classes):
    """As `published_cnn16`, for ResNet98."""
    state = conv_entries("conv1.0", 16, 3, 3) | norm_entries("conv1.1", 16)
    before = 16
    for stage, blocks, width in ((2, 6, 16), (3, 8, 32), (4, 12, 64), (5, 6, 128)):
        for i in range(blocks):
            block = f"conv{stage}_x.{i}.residual_function"
            state |= conv_entries(f"{block}.0", width, before, 1) | norm_entries(f"{block}.1", width)
            state |= conv_entries(f"{block}.4", width, width, 3) | norm_entries(f"{block}.5", width)
            state |= conv_entries(f"{block}.8", 4 * width, width, 1) | norm_entries(f"{block}.9", 4 * width)
            if i == 0:
                shortcut = f"conv{stage}_x.{i}.shortcut"
                state |= conv_entries(f"{shortcut}.0", 4 * width, before, 1) | norm_entries(f"{shortcut}.1", 4 * width)
            before = 4 * width
    return state | {"fc.weight": torch.randn(num_classes, 512), "fc.bias": torch.randn(num_classes)}


def trained(name="cnn16", num_classes=10, **kwargs):
    """A model whose every tensor differs from a new one's."""
    model = build_model(name, num_classes, **kwargs)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1 if tensor.dtype == torch.int64 else torch.rand_like(tensor)
    return model
