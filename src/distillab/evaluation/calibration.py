"""Whether a classifier is as sure as it is right: reliability by confidence, and the temperature that mends it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distillab.errors import ConfigError
from distillab.tensors import check_labels, check_logits

_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class ConfidenceBin:
    """Samples whose confidence lies in one part of 0..1.

    Attributes:
        low: Where the part begins, not in it.
        high: Where it ends, in it.
        count: Samples in it.
        confidence: Their mean confidence, 0..1; None without samples.
        accuracy: Share of them that is right, 0..1; None without samples.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15) -> list[ConfidenceBin]:
    """What a reliability diagram shows: accuracy and mean confidence in equal parts of 0..1.

    The sum over parts of (count / N) * |accuracy - confidence| is `expected_calibration_error`.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, section 2.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.
        bins: >= 1.

    Raises:
        ShapeError: Logits and labels do not belong together.
        ConfigError: No bins (also a ValueError).
    """
    _check(logits, labels)
    if bins < 1:
        raise ConfigError(f"reliability in {bins} bins cannot be shown", where="bins", hint="15 is usual")
    confidence, choice = F.softmax(logits.double(), dim=1).max(dim=1)  # [N]
    right = (choice == labels).double()
    part = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    found = []
    for number in range(bins):
        inside = part == number
        count = int(inside.sum())
        means = (confidence[inside].mean().item(), right[inside].mean().item()) if count else (None, None)
        found.append(ConfidenceBin(number / bins, (number + 1) / bins, count, *means))
    return found


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes softmax(logits / T) most likely for the labels.

    T* = argmin_T mean -log softmax(z / T)_y, searched between 1/20 and 20

    It changes how sure a classifier is, never what it chooses. The samples must be neither those that it learned from
    nor those that it is tested on.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, section 4.2.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.

    Returns:
        T > 0; above 1 where the classifier is too sure.

    Raises:
        ShapeError: Logits and labels do not belong together.
    """
    from scipy.optimize import minimize_scalar

    _check(logits, labels)
    scores, truth = logits.double().cpu(), labels.long().cpu()

    def surprise(log_temperature: float) -> float:
        with torch.no_grad():
            return F.cross_entropy(scores / math.exp(log_temperature), truth).item()

    # Convex in 1 / T, so there is one minimum; its logarithm treats too sure and too unsure alike.
    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    return math.exp(float(minimize_scalar(surprise, bounds=bounds, method="bounded").x))


def _check(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits=logits)
    check_labels(labels, logits, mixed=False)
