"""How alike two models see the same images: which layers to compare, and how."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillab.errors import DistillabError, ShapeError
from distillab.models.classifier import Classifier
from distillab.models.features import probe_features, tappable_layers

_ROUNDING = 1e-14  # relative
_LARGEST_SIDE = 4
_MOST_LAYERS = 8


def main_layers(model: Classifier) -> tuple[str, ...]:
    """The layers that a model is made of at its coarsest: those below its root that have weights and run once.

    A root with one or two such layers (a `features` block) is looked into one level further; of more than eight layers
    some are taken, evenly spread.
    """
    parts = model.published()

    def below(parent: str) -> list[str]:
        inner = (name for name in tappable_layers(model) if name.rpartition(".")[0] == parent)
        return [name for name in inner if next(parts.get_submodule(name).parameters(), None) is not None]

    names = below("")
    if len(names) < 3:
        names = [deeper for name in names for deeper in (below(name) or [name])]
    found = [name for name in names if _runs_once(model, name)]
    if len(found) > _MOST_LAYERS:
        found = [found[round(i * (len(found) - 1) / (_MOST_LAYERS - 1))] for i in range(_MOST_LAYERS)]
    return tuple(found)


def _runs_once(model: Classifier, layer: str) -> bool:
    try:
        probe_features(model, [layer], model.image_size)
    except DistillabError:
        return False
    return True


def pooled(feature: Tensor) -> Tensor:
    """A layer's output as one vector an image, of bounded length: maps are averaged down to 4 x 4 places at most.

    Args:
        feature: [N, D, H, W] maps, [N, T, D] tokens (their mean is taken) or [N, D].

    Returns:
        [N, K] float32 on the CPU.
    """
    if feature.ndim == 4:
        side = (min(feature.shape[2], _LARGEST_SIDE), min(feature.shape[3], _LARGEST_SIDE))
        feature = F.adaptive_avg_pool2d(feature.float(), side)
    elif feature.ndim == 3:
        feature = feature.float().mean(dim=1)
    return feature.float().flatten(1).cpu()


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same samples.

    CKA = |Y^T X|^2 / (|X^T X| |Y^T Y|), Frobenius norms, columns centred. It is computed from the N x N products
    X X^T and Y Y^T, which are small where features are many.

    Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414, section 3. With few samples and many features it is
    biased upwards.

    Args:
        first: [N, K] features.
        second: [N, L] features of the same samples.

    Returns:
        0..1: 1 where one is the other turned and scaled; 0 also where one of them is constant.

    Raises:
        ShapeError: They are not [N, K] and [N, L].
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ShapeError(
            f"features are {list(first.shape)} and {list(second.shape)}, [N, K] and [N, L] are needed",
            where="first, second",
        )
    x, y = (centred @ centred.T for centred in (_centred(first), _centred(second)))  # [N, N]
    scale = (x.norm() * y.norm()).item()
    return float((x * y).sum().item() / scale) if scale else 0.0


def _centred(features: Tensor) -> Tensor:
    """In float64, each column less its mean: zero where it is constant, and not what rounding leaves of that."""
    wide = features.double()
    centred = wide - wide.mean(dim=0)
    return centred.where(centred.abs() > _ROUNDING * wide.abs().amax(dim=0), 0.0)


def principal_plane(features: Tensor) -> tuple[Tensor, float]:
    """The two directions in which features vary most: their first two principal components.

    Args:
        features: [N, K], N >= 3.

    Returns:
        [N, 2] coordinates, each axis signed so that its largest entry is positive, and the share of the variance that
        lies in the plane, 0..1.
    """
    left, values, _ = torch.linalg.svd(_centred(features), full_matrices=False)
    plane = F.pad(left[:, :2] * values[:2], (0, max(0, 2 - len(values))))  # [N, 2]
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    total = values.square().sum().item()
    return plane * torch.where(largest < 0, -1.0, 1.0), (values[:2].square().sum().item() / total if total else 0.0)
