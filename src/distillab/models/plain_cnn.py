"""CNN8, CNN12 and CNN16: four stages of 3x3 convolutions, each stage pooled, then two linear layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from distillab.models.classifier import Chain, Normalize
from distillab.models.dropout import Dropout


class PlainCNN(Chain):
    """Plain convolutional classifier of 32x32 images, without shortcuts.

    Four stages of `blocks` times Conv3x3 - [Dropout] - BatchNorm - ReLU, MaxPool 3x3 stride 2 after each
    (32 -> 15 -> 7 -> 3 -> 1), then Linear(width, 128) - ReLU - Linear(128, C).

    State dict: `layer{1..4}.{i}.conv|bn.*`, `mlp.fc1|fc2.*`.

    Args:
        num_classes: C.
        width: Channels of the first stage; they double with each stage.
        blocks: Convolutions a stage.
        dropout: Share of a convolution's outputs that is dropped before BatchNorm; 0 leaves the layer out.
    """

    links = (
        "normalize",
        *("layer1", "pool1", "layer2", "pool2", "layer3", "pool3", "layer4", "pool4"),
        "mlp",
    )

    def __init__(self, num_classes: int, *, width: int, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalize = Normalize()
        self.layer1 = _stage(3, width, blocks, dropout)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.layer2 = _stage(width, 2 * width, blocks, dropout)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, dropout)
        self.pool3 = nn.MaxPool2d(3, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks, dropout)
        self.pool4 = nn.MaxPool2d(3, stride=2)
        self.mlp = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(8 * width, 128),
                relu=nn.ReLU(inplace=True),
                fc2=nn.Linear(128, num_classes),
            )
        )


def _stage(in_channels: int, out_channels: int, blocks: int, dropout: float) -> nn.Sequential:
    inputs = [in_channels] + [out_channels] * (blocks - 1)
    return nn.Sequential(*(_block(channels, out_channels, dropout) for channels in inputs))


def _block(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(in_channels, out_channels, 3, padding=1))
    if dropout:
        layers["dropout"] = Dropout(dropout)
    layers["bn"] = nn.BatchNorm2d(out_channels)
    # In place: it overwrites BatchNorm's output, which neither a tap nor a gradient needs.
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def cnn8(num_classes: int) -> PlainCNN:
    """CNN8, the teacher: 2 convolutions a stage, widths 64 to 512, dropout 0.2."""
    return PlainCNN(num_classes, width=64, blocks=2, dropout=0.2)


def cnn12(num_classes: int) -> PlainCNN:
    """CNN12, the assistant: 3 convolutions a stage, widths 32 to 256."""
    return PlainCNN(num_classes, width=32, blocks=3)


def cnn16(num_classes: int) -> PlainCNN:
    """CNN16, the student: 4 convolutions a stage, widths 16 to 128."""
    return PlainCNN(num_classes, width=16, blocks=4)
