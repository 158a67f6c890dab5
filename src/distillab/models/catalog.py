"""Records of the models, and how any model is made from a name. Imports torch only when one is built."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from distillab.errors import ConfigError, ShapeError, nearest
from distillab.outside_code import find_function
from distillab.training.config import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distillab.models.classifier import Classifier


@dataclass(frozen=True)
class ModelInfo:
    """One model that has a name of its own.

    Attributes:
        name: What the command line and recipes call it.
        role: Its place in the classic plans.
        family: The classic commands' `--model_type`.
        summary: One line for `distillab list models`.
        parameters: Of the model for ten classes.
        macs: Multiply-accumulates of one image, for ten classes.
        builder: "package.module:function", or the function: called with `num_classes`, returns the module.
        input_size: Height and width of the images it takes, in pixels.
        hint_layer: The layer that FitNets-like methods read where none is named.
        output: Finds the logits in what the module returns, where that is not a tensor.
    """

    name: str
    role: Role
    family: Literal["normal", "resnet"]
    summary: str
    parameters: int
    macs: int
    builder: str | Callable[..., nn.Module]
    input_size: int = 32
    hint_layer: str | None = None
    output: Callable[[Any], Tensor] | None = None


def _cnn(name: str, role: Role, parameters: int, macs: int, summary: str) -> ModelInfo:
    builder = f"distillab.models.plain_cnn:{name}"
    return ModelInfo(name, role, "normal", summary, parameters, macs, builder, hint_layer="pool2")


def _resnet(name: str, role: Role, parameters: int, macs: int, summary: str) -> ModelInfo:
    builder = f"distillab.models.bottleneck_resnet:{name}"
    return ModelInfo(name, role, "resnet", summary, parameters, macs, builder, hint_layer="hint_pool")


MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        _cnn(
            "cnn8",
            "teacher",
            4_756_170,
            164_553_984,
            "plain CNN, 4 stages of 2 convolutions, widths 64 to 512, dropout",
        ),
        _cnn("cnn12", "assistant", 1_993_162, 71_863_552, "plain CNN, 4 stages of 3 convolutions, widths 32 to 256"),
        _cnn("cnn16", "student", 705_402, 25_762_560, "plain CNN, 4 stages of 4 convolutions, widths 16 to 128"),
        _resnet(
            "resnet50",
            "teacher",
            23_520_842,
            1_297_829_888,
            "bottleneck ResNet, 3-4-6-3 blocks, base width 64, dropout",
        ),
        _resnet(
            "resnet71", "assistant", 8_015_018, 449_685_504, "bottleneck ResNet, 4-6-9-4 blocks, base width 32, dropout"
        ),
        _resnet(
            "resnet98", "student", 2_831_578, 152_753_152, "bottleneck ResNet, 6-8-12-6 blocks, base width 16, dropout"
        ),
    )
}


def build_model(
    spec: str,
    num_classes: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int = 32,
    allow_code: bool = True,
) -> Classifier:
    """A new model with random weights, normalisation inside.

    Args:
        spec: A name in `MODELS`; "timm:NAME" or "torchvision:NAME" where that package is installed;
            "package.module:function", called as `function(num_classes=...)`.
        num_classes: C >= 2.
        mean: Channel means of the images in [0, 1] units; 0 if not given.
        std: Channel deviations of the images in [0, 1] units; 1 if not given.
        image_size: Height and width of the images it will get, in pixels.
        allow_code: Whether "package.module:function" may be imported.

    Returns:
        The model in training mode; `spec`, `num_classes` and `image_size` are attributes of it.

    Raises:
        ConfigError: An unknown name, a missing package, code that fails or returns no module, C < 2,
            impossible statistics.
        ShapeError: The model takes images of another size.
    """
    if num_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, not {num_classes}", where="num_classes")
    info = MODELS.get(spec)
    if info is not None and image_size != info.input_size:
        raise ShapeError(
            f"{spec} takes images of {info.input_size}x{info.input_size}, not {image_size}x{image_size}",
            where="image_size",
            hint=f"image size {info.input_size}: images are resized to it",
        )
    module = _build(spec, num_classes, info, allow_code)

    from distillab.models.classifier import Classifier, NormalizedModel

    if isinstance(module, Classifier):
        model = module
    else:
        model = NormalizedModel(module, num_classes, output=info.output if info else None)
    model.spec = spec
    model.image_size = image_size
    if info is not None:
        model.hint_layer = info.hint_layer
    before = model.normalize.statistics
    model.normalize.assign(before[0] if mean is None else mean, before[1] if std is None else std)
    return model


def _build(spec: str, num_classes: int, info: ModelInfo | None, allow_code: bool) -> nn.Module:
    if info is not None:
        builder = info.builder
        return _call(builder, num_classes) if isinstance(builder, str) else builder(num_classes=num_classes)
    home, colon, name = spec.partition(":")
    if not colon:
        hint = f"{nearest(spec, MODELS)}; or timm:NAME, torchvision:NAME, package.module:function"
        raise ConfigError(f"unknown model '{spec}'", where="model", hint=hint)
    if not home or not name:
        raise ConfigError(
            f"'{spec}' names no model", where="model", hint="timm:NAME, torchvision:NAME or package.module:function"
        )
    if home == "timm":
        return _from_package(home, "timm", name, lambda timm: timm.create_model(name, num_classes=num_classes))
    if home == "torchvision":
        return _from_package(
            home, "torchvision.models", name, lambda models: models.get_model(name, num_classes=num_classes)
        )
    if not allow_code:
        raise ConfigError(
            f"model '{spec}' is code from outside, which is not run unasked",
            where="model",
            hint="add --allow-code if you trust it",
        )
    return _call(spec, num_classes)


def _from_package(package: str, module: str, name: str, create: Callable[[Any], nn.Module]) -> nn.Module:
    try:
        library = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"model '{package}:{name}' needs the package {package}, which cannot be imported: {error}",
            where="model",
            hint=f"pip install {package}",
        ) from error
    known: list[str] = library.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"{package} has no model '{name}'",
            where="model",
            hint=f"did you mean {' or '.join(close)}?" if close else f"{module}.list_models() names them all",
        )
    return create(library)


def _call(target: str, num_classes: int) -> nn.Module:
    from torch import nn

    function = find_function(target, where="model")
    try:
        built = function(num_classes=num_classes)
    except Exception as error:
        raise ConfigError(
            f"{target}(num_classes={num_classes}) failed: {type(error).__name__}: {error}", where="model"
        ) from error
    if not isinstance(built, nn.Module):
        raise ConfigError(
            f"{target} returned a {type(built).__name__}, not a torch.nn.Module",
            where="model",
            hint="return the module itself",
        )
    return built
