"""What every model here has in common: normalisation inside, a name, a number of classes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distillab.errors import ConfigError, ShapeError

Statistics = tuple[float, float, float]

IDENTITY: tuple[Statistics, Statistics] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Normalize(nn.Module):
    """Images in [0, 1] made zero-mean and unit-variance, channel by channel.

    y = (x - mean) / std

    The buffers are not persistent: published state dicts have no such entries and must load strictly.

    Args:
        mean: Three channel means in [0, 1] units; 0 if not given.
        std: Three positive channel deviations in [0, 1] units; 1 if not given.

    Raises:
        ConfigError: Not three finite numbers, or a deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.assign(IDENTITY[0] if mean is None else mean, IDENTITY[1] if std is None else std)

    def assign(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take other statistics, in place: buffers keep their device, type and address."""
        # The decimal values are kept beside the buffers: 0.485 comes back as 0.485, whatever the buffers' type.
        self.statistics = (_three_finite(mean, "mean"), _three_finite(std, "std"))
        if min(self.statistics[1]) <= 0:
            raise ConfigError(f"a standard deviation must be positive, not {list(std)}", where="std")
        for buffer, values in zip((self.mean, self.std), self.statistics, strict=True):
            buffer.copy_(torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            images: [N, 3, H, W] floats in [0, 1].

        Returns:
            [N, 3, H, W].

        Raises:
            ShapeError: Not [N, 3, H, W], or integers.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images are {list(images.shape)}, a model takes [N, 3, H, W]", where="images")
        if not images.is_floating_point():
            raise ShapeError(
                f"images are {images.dtype}, a model takes floats in [0, 1]",
                where="images",
                hint="images.float() / 255 for bytes",
            )
        return images.sub(self.mean).div_(self.std)

    def extra_repr(self) -> str:
        """The statistics, for `print(model)`."""
        mean, std = self.statistics
        return f"mean={list(mean)}, std={list(std)}"


def _three_finite(values: Sequence[float], name: str) -> Statistics:
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{name} must be three finite numbers, one a channel, not {list(values)}", where=name)
    red, green, blue = (float(value) for value in values)
    return red, green, blue


class Classifier(nn.Module):
    """A model that takes images in [0, 1] and gives logits, and that can say how it was built.

    Attributes:
        spec: The name that `build_model` makes it from: "cnn8", "timm:resnet50", "package.module:function".
        num_classes: C.
        image_size: Height and width of its input in pixels.
        hint_layer: The layer that FitNets-like methods read where none is named; None: the middle one is looked for.
        classes: Their names, where known.
        normalize: Its first module.
    """

    spec: str
    num_classes: int
    image_size: int = 32
    hint_layer: str | None = None
    classes: tuple[str, ...] | None = None
    normalize: Normalize

    def published(self) -> nn.Module:
        """The module whose state dict has the layout that weight files have."""
        return self


class Chain(Classifier):
    """A classifier that is a chain of named modules, each of which can be tapped, or stopped at.

    Side branches hang on a link of the chain and lead nowhere: they are computed only when tapped.

    Class attributes:
        links: Names of the modules in the order in which images go through them, from "normalize" to the logits.
        branches: Name of a side branch -> name of the link whose output it takes.
    """

    links: ClassVar[tuple[str, ...]]
    branches: ClassVar[Mapping[str, str]] = {}

    def tap(
        self, images: Tensor, layers: Collection[str] = (), *, stop: bool = False
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits, and the outputs of some links or branches.

        Args:
            images: [N, 3, image_size, image_size] floats in [0, 1].
            layers: Names among `links` and `branches`.
            stop: End after the last of `layers`.

        Returns:
            [N, C] logits (None where it stopped), and layer -> [N, D, H, W] or [N, D].

        Raises:
            ShapeError: The images have another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ShapeError(
                f"images are {list(images.shape)}, this model takes [N, 3, {self.image_size}, {self.image_size}]",
                where="images",
                hint=f"resize them to {self.image_size}x{self.image_size}",
            )
        features: dict[str, Tensor] = {}
        x = images
        for link in self.links:
            x = getattr(self, link)(x)
            if link in layers:
                features[link] = x
            for branch, start in self.branches.items():
                if start == link and branch in layers:
                    features[branch] = getattr(self, branch)(x)
            if stop and len(features) == len(layers):
                return None, features
        return x, features

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of images [N, 3, image_size, image_size] in [0, 1]."""
        logits, _ = self.tap(images)
        assert logits is not None
        return logits


class NormalizedModel(Classifier):
    """Any module that maps images to logits, with normalisation before it.

    Args:
        inner: The module. Its layers and its state dict keep their own names: see `published`.
        num_classes: C, which its logits must have.
        spec: What it is built from; "module:Class" of `inner` if not given.
        mean: Channel means, as in `Normalize`.
        std: Channel deviations, as in `Normalize`.
        image_size: Height and width of its input in pixels.
        output: Finds the logits in what `inner` returns, for a module that returns a tuple, dict or record.
    """

    def __init__(
        self,
        inner: nn.Module,
        num_classes: int,
        *,
        spec: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int = 32,
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.inner = inner
        self.num_classes = num_classes
        self.spec = spec or f"{type(inner).__module__}:{type(inner).__qualname__}"
        self.image_size = image_size
        self.output = output

    def published(self) -> nn.Module:
        """The module inside, so that weight files know nothing of the wrapping."""
        return self.inner

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of images [N, 3, H, W] in [0, 1].

        Raises:
            ShapeError: The module inside returns something else.
        """
        raw = self.inner(self.normalize(images))
        logits = raw if self.output is None else self.output(raw)
        if not isinstance(logits, Tensor):
            raise ShapeError(
                f"the model returns a {type(logits).__name__}, not a tensor of logits",
                where=self.spec,
                hint="return the logits alone, or wrap it: NormalizedModel(model, num_classes, output=...)",
            )
        if logits.shape != (images.shape[0], self.num_classes):
            raise ShapeError(
                f"the model returns {list(logits.shape)}, logits of {self.num_classes} classes are "
                f"[{images.shape[0]}, {self.num_classes}]",
                where=self.spec,
            )
        return logits


def set_normalization(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a model the statistics of the images it will see.

    Args:
        model: A `Classifier`.
        mean: Three channel means in [0, 1] units.
        std: Three positive channel deviations in [0, 1] units.

    Raises:
        ConfigError: Impossible statistics, or a model without normalisation inside.
    """
    classifier(model).normalize.assign(mean, std)


def get_normalization(model: nn.Module) -> tuple[Statistics, Statistics]:
    """The mean and std that a model normalises with, three numbers each, in [0, 1] units.

    Raises:
        ConfigError: A model without normalisation inside.
    """
    return classifier(model).normalize.statistics


def classifier(model: nn.Module) -> Classifier:
    """The model itself, known to be a `Classifier`.

    Raises:
        ConfigError: It is another module.
    """
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"a {type(model).__name__} does not say how it was built, nor how images are normalised",
            where="model",
            hint="make it with build_model, or wrap it: NormalizedModel(model, num_classes)",
        )
    return model


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every submodule is in the mode it was in, which may differ."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
