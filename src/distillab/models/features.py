"""What a model says of a batch: logits, and the features of named layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distillab.errors import ConfigError, ShapeError, nearest
from distillab.models.classifier import Chain, NormalizedModel, evaluation_mode

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class ModelOutput:
    """Logits and tapped features of one batch.

    Attributes:
        logits: [N, C] raw scores; None where the forward pass stopped at a layer before them.
        features: layer name -> [N, D, H, W] (or [N, D]) activations.
    """

    logits: Tensor | None
    features: dict[str, Tensor] = field(default_factory=dict)


def forward_features(
    model: nn.Module, images: Tensor, layers: Sequence[str] = (), *, stop: bool = False
) -> ModelOutput:
    """Logits of a batch, and the outputs of some layers of any module.

    Our own models give their links' outputs directly. Every other layer is read by a hook, which is gone when
    this returns or raises; its output is cloned, since the operation that follows may work in place.

    Args:
        model: Any module that maps images to logits.
        images: [N, 3, H, W] floats in [0, 1].
        layers: Names as in `tappable_layers`.
        stop: End after the last of `layers`: what comes later does not run, so that its BatchNorm statistics
            stay as they are. `logits` is None then.

    Returns:
        Logits, and a feature for each of `layers`; gradients flow through both.

    Raises:
        ConfigError: An unknown layer, one that does not run, or `stop` without layers.
        ShapeError: A layer that gives no tensor or runs more than once in a pass (a shared ReLU), a model that
            returns no tensor. With `stop`, a pass ends at the first run of its last layer.
    """
    if stop and not layers:
        raise ConfigError("nothing to stop at: no layers are named", where="layers")
    wanted = tuple(dict.fromkeys(layers))
    if isinstance(model, Chain) and all(name in model.links or name in model.branches for name in wanted):
        logits, features = model.tap(images, wanted, stop=stop)
        return ModelOutput(logits, features)
    features = {}
    modules = {name: _module(model, name) for name in wanted}
    with _hooks(modules, _collector(features, len(wanted) if stop else None)):
        try:
            logits = _logits(model, images, wanted)
        except _LastLayerReached:
            logits = None
    for name in wanted:
        if name not in features:
            raise ConfigError(
                f"layer '{name}' does not run in this forward pass", where="layers", hint="name another layer"
            )
    return ModelOutput(logits, {name: features[name] for name in wanted})


class _LastLayerReached(BaseException):
    """Ends a forward pass from within a hook; no Exception, so that no `except` of the model catches it."""


def _collector(features: dict[str, Tensor], stop_after: int | None) -> Callable[[str, Any], None]:
    def collect(name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ShapeError(f"layer '{name}' gives a {type(output).__name__}, not a tensor", where=name)
        if name in features:
            raise ShapeError(
                f"layer '{name}' runs more than once in a forward pass",
                where=name,
                hint="name the layer around it",
            )
        features[name] = output.clone()
        if len(features) == stop_after:
            raise _LastLayerReached

    return collect


@contextlib.contextmanager
def _hooks(modules: dict[str, nn.Module], collect: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `collect(name, output)` whenever one of the modules has run."""
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():

            def hook(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                collect(name, output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _logits(model: nn.Module, images: Tensor, layers: Sequence[str]) -> Tensor | None:
    if isinstance(model, Chain):
        # A side branch runs, and so fires its hook, only when it is asked for.
        return model.tap(images, [name for name in layers if name in model.branches])[0]
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise ShapeError(
            f"the model returns a {type(logits).__name__}, not a tensor of logits",
            where=type(model).__name__,
            hint="wrap it: NormalizedModel(model, num_classes, output=...)",
        )
    return logits


def _named_root(model: nn.Module) -> nn.Module:
    return model.inner if isinstance(model, NormalizedModel) else model


def _module(model: nn.Module, name: str) -> nn.Module:
    with contextlib.suppress(AttributeError):
        if name:
            return _named_root(model).get_submodule(name)
    known = tappable_layers(model)
    parent = name.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == (parent if parent in known else "")]
    raise ConfigError(f"the model has no layer '{name}'", where="layers", hint=nearest(name, siblings))


def tappable_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of all layers that `forward_features` can read, in the order in which the model declares them."""
    return tuple(name for name, _ in _named_root(model).named_modules(remove_duplicate=False) if name)


def default_hint_layer(model: nn.Module, image_size: int) -> str:
    """The layer that FitNets-like methods read where none is named: the middle of the model.

    It is the model's own `hint_layer` where it has one. Elsewhere it is the middle one (the later of two) of the
    top-level children that have parameters, run once and give a map [N, D, H, W] of more than one pixel; where
    there is only one such child (a `features` block), the middle is looked for inside it, and where there is none
    inside the first that holds some: a body may end in flat features.

    Args:
        model: Any module that maps images to logits.
        image_size: Height and width of its input in pixels.

    Returns:
        A name among `tappable_layers`.

    Raises:
        ConfigError: No child gives a map.
    """
    own = getattr(model, "hint_layer", None)
    if isinstance(own, str):
        return own
    for start in ("", *_children_with_parameters(model, "")):
        found = _middle_below(model, start, image_size)
        if found is not None:
            return found
    raise ConfigError(
        "no layer of this model gives a map [N, D, H, W], as far as two levels deep, so there is no middle one to take",
        where="hint_layer",
        hint="name one (distill.hint_layer, distill.guided_layer): " + ", ".join(tappable_layers(model)[:5]) + ", ...",
    )


def _middle_below(model: nn.Module, start: str, image_size: int) -> str | None:
    """The middle one of the layers in one; None where none of its children gives a map."""
    parent, large = start, [start]
    while len(large) == 1:
        [parent] = large
        maps = _children_with_maps(model, parent, image_size)
        # A block may end in a map of one pixel and hold larger ones.
        large = [name for name, pixels in maps.items() if pixels > 1] or (list(maps) if len(maps) == 1 else [])
    if large:
        return large[len(large) // 2]
    return parent if parent != start else None


def _children_with_parameters(model: nn.Module, parent: str) -> dict[str, nn.Module]:
    children = _named_root(model).get_submodule(parent).named_children()
    return {
        f"{parent}.{name}".lstrip("."): child for name, child in children if next(child.parameters(), None) is not None
    }


def _children_with_maps(model: nn.Module, parent: str, image_size: int) -> dict[str, int]:
    """Children that have parameters, run once and give maps: name -> pixels of its map."""
    children = _children_with_parameters(model, parent)
    runs: dict[str, list[Any]] = {name: [] for name in children}
    with _hooks(children, lambda name, output: runs[name].append(output)):
        _probe(model, image_size, model)
    return {
        name: outputs[0][0, 0].numel()
        for name, outputs in runs.items()
        if len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == 4
    }


def probe_features(model: nn.Module, layers: Sequence[str], image_size: int) -> dict[str, Tensor]:
    """Features of a small batch of seeded noise, to learn the shapes and signs of layers before any training.

    The model stays as it is, bit for bit: parameters, buffers, the mode of every submodule; nor does any global
    random generator move.

    Args:
        model: Any module that maps images to logits.
        layers: Names as in `tappable_layers`.
        image_size: Height and width of its input in pixels.

    Returns:
        layer -> [2, D, H, W] or [2, D], without gradient, on the model's device.

    Raises:
        ConfigError: As `forward_features`.
        ShapeError: As `forward_features`.
    """
    return _probe(model, image_size, lambda images: forward_features(model, images, layers).features)


def _probe(model: nn.Module, image_size: int, run: Callable[[Tensor], ResultT]) -> ResultT:
    parameter = next(model.parameters(), torch.empty(0))
    noise = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with evaluation_mode(model), torch.no_grad():
        return run(noise.to(parameter))


def is_rectified(feature: Tensor) -> bool:
    """Whether a feature has no negative element, as after a ReLU. Waits for the device: not for the hot path."""
    return bool((feature >= 0).all())
