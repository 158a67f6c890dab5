"""ResNet50, ResNet71 and ResNet98 for 32x32 images: bottleneck blocks with dropout."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distillab.models.classifier import Chain, Normalize
from distillab.models.dropout import Dropout

DROPOUT = 0.3


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions; its output has 4 times `width` channels.

    y = relu(residual_function(x) + shortcut(x))

    Source: He, Zhang, Ren, Sun 2015, arXiv:1512.03385, figure 5; with the stride on the 3x3 convolution, and
    dropout after each BatchNorm of the residual branch. The branch's last scale begins at zero, so that a new
    block passes relu(shortcut(x)) on: Goyal et al. 2017, arXiv:1706.02677, section 5.1.

    Args:
        in_channels: Channels of x.
        width: Channels inside.
        stride: Of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        last_norm = nn.BatchNorm2d(out_channels)
        # So deep, and with dropout in each branch, it hardly begins to learn otherwise: decision 0014.
        nn.init.zeros_(last_norm.weight)
        self.residual_function = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            Dropout(DROPOUT),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            Dropout(DROPOUT),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, 1, bias=False),
            last_norm,
            Dropout(DROPOUT),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, 4 width, H / stride, W / stride]."""
        # The in-place ReLU takes a fresh sum, so neither x nor what a tap holds of the branches changes.
        y: Tensor = self.relu(self.residual_function(x) + self.shortcut(x))
        return y


class BottleneckResNet(Chain):
    """Residual classifier of 32x32 images: 3x3 stem, four stages of bottlenecks at strides 1, 2, 2, 2.

    The residual branches and the classifier's input are dropped out with probability 0.3. `hint_pool`, a
    MaxPool 3x3 stride 2 of the second stage's output, is a side branch: the logits do not depend on it.

    State dict: `conv1.{0,1}.*`, `conv{2..5}_x.{i}.residual_function|shortcut.{j}.*`, `fc.*`.

    Args:
        num_classes: C.
        width: Channels of the stem, and inside the bottlenecks of the first stage; the latter double with each
            stage.
        blocks: Bottlenecks of each of the four stages.
    """

    links = ("normalize", "conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "pool", "dropout", "fc")
    branches = {"hint_pool": "conv3_x"}  # noqa: RUF012 - the base class declares it as a constant

    def __init__(self, num_classes: int, *, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalize = Normalize()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        outputs = [width * 2**stage * Bottleneck.expansion for stage in range(4)]
        self.conv2_x = _stage(width, width, blocks[0], stride=1)
        self.conv3_x = _stage(outputs[0], 2 * width, blocks[1], stride=2)
        self.hint_pool = nn.MaxPool2d(3, stride=2)
        self.conv4_x = _stage(outputs[1], 4 * width, blocks[2], stride=2)
        self.conv5_x = _stage(outputs[2], 8 * width, blocks[3], stride=2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dropout = Dropout(DROPOUT)
        self.fc = nn.Linear(outputs[3], num_classes)


def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(width * Bottleneck.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(in_channels, width, stride), *rest)


def resnet50(num_classes: int) -> BottleneckResNet:
    """ResNet50, the teacher: 3, 4, 6, 3 blocks, base width 64."""
    return BottleneckResNet(num_classes, width=64, blocks=(3, 4, 6, 3))


def resnet71(num_classes: int) -> BottleneckResNet:
    """ResNet71, the assistant: 4, 6, 9, 4 blocks, base width 32."""
    return BottleneckResNet(num_classes, width=32, blocks=(4, 6, 9, 4))


def resnet98(num_classes: int) -> BottleneckResNet:
    """ResNet98, the student: 6, 8, 12, 6 blocks, base width 16."""
    return BottleneckResNet(num_classes, width=16, blocks=(6, 8, 12, 6))
