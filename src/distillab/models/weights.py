"""Models to weight files and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, ValidationInfo, field_validator
from torch import Tensor, nn

from distillab.errors import CheckpointError
from distillab.models.catalog import MODELS, build_model
from distillab.models.classifier import IDENTITY, Classifier, Statistics, classifier
from distillab.models.weight_files import (
    digest,
    read_weights,
    shown,
    write_pickle,
    write_safetensors,
)
from distillab.outside_code import names_code
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import read_json_object

# What published checkpoints of the classic models were trained with, by number of classes: (mean, std).
PUBLISHED_STATISTICS: dict[int, tuple[Statistics, Statistics]] = {
    10: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

_Positive = Annotated[FiniteFloat, Field(gt=0)]

# Types that weights are kept in; a model computes in the one that it is built with.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Description(BaseModel):
    """What a weight file's metadata must say of its model; whatever else it says is left alone."""

    model_config = ConfigDict(frozen=True)

    model: str
    num_classes: int = Field(ge=2)
    classes: tuple[str, ...] | None = None
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]
    image_size: int = Field(ge=1, le=1024)

    @field_validator("classes")
    @classmethod
    def _one_name_a_class(cls, names: tuple[str, ...] | None, others: ValidationInfo) -> tuple[str, ...] | None:
        number = others.data.get("num_classes")
        if names is not None and number is not None and len(names) != number:
            raise ValueError(f"{len(names)} names for {number} classes")
        return names


def save_weights(model: nn.Module, path: Path | str, metadata: Mapping[str, Any]) -> None:
    """Write a model as safetensors, whole or not at all.

    The metadata is one JSON string under the key "distillab": `format_version`, `model`, `num_classes`, `classes`,
    `mean`, `std`, `image_size`, the caller's own entries, and `sha256` over all of these and the tensors.

    Args:
        model: A `Classifier`, on any device.
        path: Where; an older file is replaced.
        metadata: More to say, JSON values only; `classes` here replace those of the model.

    Raises:
        ConfigError: A model that does not say how it was built.
        ValueError: Metadata under a name that is taken.
        StorageError: The disk refuses.
    """
    known = classifier(model)
    write_safetensors(Path(path), _state(known), _describe(known, metadata))


def save_classic(model: nn.Module, path: Path | str, metadata: Mapping[str, Any]) -> None:
    """Write a model as the plain state dict of a `.pth`, with the metadata in a `.json` beside it.

    Args:
        model: A `Classifier`, on any device.
        path: Of the `.pth`; an older file is replaced.
        metadata: As for `save_weights`.

    Raises:
        ConfigError: A model that does not say how it was built.
        ValueError: Metadata under a name that is taken.
        StorageError: The disk refuses.
    """
    known = classifier(model)
    write_pickle(Path(path), _state(known), _describe(known, metadata))


def load_model(
    source: Path | str,
    *,
    spec: str | None = None,
    num_classes: int | None = None,
    image_size: int = 32,
    allow_code: bool = False,
    observer: Observer = silent,
) -> Classifier:
    """A model with the weights of a file or of a run folder, ready to predict.

    What the model is follows from the file's metadata; without any it is recognised among the classic six by the
    names of its weights, or built from `spec`. A file that does not say how images are normalised is taken to use
    the published statistics for 10 classes (CIFAR-10) or 100 (CIFAR-100), else none, and the observer is told.

    Args:
        source: A weight file as for `read_weights`, or a run folder.
        spec: What the model must be, as for `build_model`; needed for a foreign model without metadata. Whoever
            gives a function here has seen it, and it is imported.
        num_classes: C that the model must have; needed where `spec` is.
        image_size: Side of the images that a foreign model without metadata takes, in pixels.
        allow_code: Whether a "package.module:function" that the file alone names may be imported.
        observer: Hears of assumptions made, and of code before it is imported.

    Returns:
        The model in evaluation mode on the CPU; `classes` is set where the file names them.

    Raises:
        CheckpointError: A file that `read_weights` refuses, a folder without weights, weights of another model,
            with another number of classes, of another type, or with numbers that are not finite.
        ConfigError: A model that `build_model` refuses.
    """
    path = Path(source)
    if path.is_dir():
        path = _weights_of_run(path)
    tensors, metadata = read_weights(path)
    if metadata:
        described = _from_metadata(metadata, path)
    else:
        described = _from_weights(tensors, path, spec, num_classes, image_size, observer)
    if spec is not None and spec != described.model:
        raise CheckpointError(
            f"holds a {described.model}, a {spec} is asked for", where=str(path), hint="use another file or model"
        )
    if num_classes is not None and num_classes != described.num_classes:
        raise CheckpointError(
            f"its {described.model} has {described.num_classes} classes, {num_classes} are asked for",
            where=str(path),
            hint="use the data set that it was trained on, or another file",
        )
    allowed = allow_code or spec is not None
    if allowed and names_code(described.model):
        observer(Note(f"importing code: {described.model}, named for {path}"))
    model = _build(described, tensors, path, allow_code=allowed)
    model.published().load_state_dict(dict(tensors), strict=True)
    model.classes = described.classes
    return model.eval()


def weights_sha256(model: nn.Module) -> str:
    """Hash of what decides a model's logits: how it is built, its weights and buffers, its normalisation.

    Args:
        model: A `Classifier`, on any device.

    Returns:
        64 hexadecimal digits, the same on every device and in every memory format.

    Raises:
        ConfigError: A model that does not say how it was built.
    """
    known = classifier(model)
    return digest(_architecture(known), _state(known))


def _architecture(model: Classifier) -> dict[str, Any]:
    mean, std = model.normalize.statistics
    return {
        "model": model.spec,
        "num_classes": model.num_classes,
        "mean": mean,
        "std": std,
        "image_size": model.image_size,
    }


def _describe(model: Classifier, metadata: Mapping[str, Any]) -> dict[str, Any]:
    own = _architecture(model)
    taken = metadata.keys() & {*own, "format_version", "sha256"}
    if taken:
        raise ValueError(f"metadata under names that are taken: {', '.join(sorted(taken))}")
    return {"classes": model.classes, **metadata, **own}


def _state(model: Classifier) -> dict[str, Tensor]:
    # Copied: safetensors refuses tied weights, which share their memory.
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.published().state_dict().items()
    }


def _weights_of_run(folder: Path) -> Path:
    """The weight file that a run folder is about."""
    result = folder / "result.json"
    if result.is_file():
        named = read_json_object(result).get("weights")
        # A bare name only: a run folder must not lead out of itself.
        if isinstance(named, str) and named == Path(named).name:
            return folder / named
    files = {file.name: file for file in sorted(folder.glob("*.safetensors"))}
    for name in ("student.safetensors", "teacher.safetensors"):
        if name in files:
            return files[name]
    if len(files) == 1:
        return next(iter(files.values()))
    if files:
        raise CheckpointError(
            f"this folder has {len(files)} weight files",
            where=str(folder),
            hint="name one of them: " + ", ".join(list(files)[:3]),
        )
    raise CheckpointError(
        "no weights in this folder", where=str(folder), hint="a run that has ended leaves student.safetensors in it"
    )


def _from_metadata(metadata: Mapping[str, Any], path: Path) -> _Description:
    try:
        return _Description.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"metadata '{key}': {first['msg'].removeprefix('Value error, ')}",
            where=str(path),
            hint="write the file again with save_weights",
        ) from error


def _from_weights(
    tensors: Mapping[str, Tensor],
    path: Path,
    spec: str | None,
    num_classes: int | None,
    image_size: int,
    observer: Observer,
) -> _Description:
    recognised = _recognise(tensors)
    if recognised is not None:
        name, classes = recognised
        image_size = MODELS[name].input_size
    elif spec is None:
        raise CheckpointError(
            f"these are weights of none of {', '.join(MODELS)}",
            where=str(path),
            hint="name the architecture, timm:NAME or package.module:function: --model, of a teacher --teacher-model",
        )
    elif num_classes is None:
        raise CheckpointError(
            f"the file does not say how many classes its {spec} has",
            where=str(path),
            hint="give num_classes (--num-classes)",
        )
    else:
        name, classes = spec, num_classes
    mean, std = PUBLISHED_STATISTICS.get(classes, IDENTITY)
    source = "as published checkpoints use" if classes in PUBLISHED_STATISTICS else "that is, none at all"
    observer(
        Note(f"{path} does not say how images are normalised: assuming mean {list(mean)}, std {list(std)}, {source}")
    )
    return _Description(model=name, num_classes=classes, mean=mean, std=std, image_size=image_size)


def _recognise(tensors: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Which of the classic six has weights of these names, and for how many classes; None where none has."""
    last_layers = {"normal": "mlp.fc2.bias", "resnet": "fc.bias"}
    for name, info in MODELS.items():
        last = tensors.get(last_layers[info.family])
        if last is None or last.ndim != 1 or len(last) < 2:
            continue
        with torch.device("meta"):
            candidate = build_model(name, len(last))
        if candidate.state_dict().keys() == tensors.keys():
            return name, len(last)
    return None


def _build(described: _Description, tensors: Mapping[str, Tensor], path: Path, *, allow_code: bool) -> Classifier:
    """The model that is described, of new weights, once it is clear that the file's own will fit."""
    if described.num_classes > sum(tensor.numel() for tensor in tensors.values()):
        raise CheckpointError(
            f"says that it has {described.num_classes} classes, and holds fewer numbers than that",
            where=str(path),
            hint="get the file from its source again",
        )
    build = partial(
        build_model,
        described.model,
        described.num_classes,
        mean=described.mean,
        std=described.std,
        image_size=described.image_size,
        allow_code=allow_code,
    )
    if not names_code(described.model):
        _check_unbuilt(build, tensors, path)
    # The random initial weights are thrown away, so drawing them must not move the global generator.
    with torch.random.fork_rng(devices=[]):
        model = build()
    _check_fits(model, tensors, path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{shown(name)} holds numbers that are not finite",
                where=str(path),
                hint="its training diverged, or it was altered: take another file",
            )
    return model


def _check_unbuilt(build: Callable[[], Classifier], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare weights with their model before it takes memory: a small file may describe one of any size."""
    try:
        with torch.device("meta"):
            model = build()
    except RuntimeError:
        return  # some models read numbers while they are built, and here there are none
    _check_fits(model, tensors, path)


def _check_fits(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = model.published().state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{shown(name)} is not of this model" for name in tensors if name not in expected]
    for name in (name for name in expected if name in tensors):
        given, own = tensors[name], expected[name]
        if given.shape != own.shape:
            problems.append(f"{name} is {list(given.shape)}, the model's {list(own.shape)}")
        elif given.dtype != own.dtype and not {given.dtype, own.dtype} <= set(_FLOATS):
            problems.append(f"{name} is {given.dtype}, the model's {own.dtype}")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"not the weights of this {model.spec} with {model.num_classes} classes: " + "; ".join(problems[:3]) + more,
            where=str(path),
            hint="name the model that they belong to",
        )
