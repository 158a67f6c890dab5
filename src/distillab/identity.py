"""What a run is: all that its trajectory depends on, to be told from other runs and from itself elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distillab import __version__
from distillab.config import OF_THE_PLACE, DistillConfig, TrainConfig, settings_of
from distillab.data.dataset import Dataset
from distillab.models.weights import weights_sha256
from distillab.runtime.device import Compute
from distillab.runtime.reproducibility import NUMERICS

_WITHOUT_INFLUENCE = ("distillab", "torch")
_OUTSIDE = ("data", "teacher", "teacher_model")  # an identity has the hash of what is in there


def run_identity(
    config: TrainConfig | DistillConfig, dataset: Dataset, loaded_teacher: nn.Module | None
) -> dict[str, Any]:
    """Settings less those of place and device, contents in the place of files' paths.

    Args:
        config: Resolved settings.
        dataset: The images.
        loaded_teacher: The teacher, if it is not trained in the run.

    Returns:
        JSON values; runs that give equal results have equal ones.
    """
    settings = _own_settings(config)
    settings["data"] = dataset.sha256
    if loaded_teacher is not None:
        settings.pop("teacher_model", None)
        settings["teacher"] = weights_sha256(loaded_teacher)
    return settings


def _own_settings(config: TrainConfig | DistillConfig) -> dict[str, Any]:
    settings = settings_of(config)
    for key in OF_THE_PLACE:
        settings.pop(key, None)
    settings["training"].pop("execution")
    return settings


def identity_sha256(identity: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that stand for a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def arithmetic(compute: Compute) -> dict[str, Any]:
    """What a result says of how it was computed: results that differ here are not held against each other.

    Args:
        compute: Device and precision.
    """
    return {
        "numerics": NUMERICS,
        "device": compute.device.type,
        "precision": compute.precision,
    }


def made_by(identities: Sequence[Mapping[str, Any]], compute: Compute) -> dict[str, Any]:
    """What a checkpoint says of how it came about.

    Args:
        identities: Of the runs that it is of.
        compute: Device, precision, and how steps are executed.
    """
    return {
        **arithmetic(compute),
        "runs": list(identities),
        "execution": compute.execution,
        "threads": torch.get_num_threads(),
        "world_size": 1,
        "distillab": __version__,
        "torch": torch.__version__,
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Where two of `made_by` differ, in words.

    Returns:
        What makes another trajectory; and versions, which may make one.
    """
    decisive: list[str] = []
    told: list[str] = []
    for path, before, after in _differing(saved, now, ()):
        kind = told if path[0] in _WITHOUT_INFLUENCE else decisive
        kind.append(f"{'.'.join(path)} was {_short(before)}, is {_short(after)}")
    return decisive, told


def changed_settings(before: TrainConfig | DistillConfig, now: TrainConfig | DistillConfig) -> list[str]:
    """Settings in which two runs are not the same, in words; what their paths of images and teachers lead to is not
    looked at.
    """
    one, other = (_own_settings(config) for config in (before, now))
    for settings in (one, other):
        for name in _OUTSIDE:
            settings.pop(name, None)
    return [f"{'.'.join(path)} was {_short(old)}, is {_short(new)}" for path, old, new in _differing(one, other, ())]


def _differing(saved: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*saved, *now]):
            yield from _differing(saved.get(key), now.get(key), (*path, str(key)))
    elif path == ("runs",) and isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for number, (before, after) in enumerate(zip(saved, now, strict=True)):
            yield from _differing(before, after, ("settings",) if len(now) == 1 else ("settings", str(number + 1)))
    elif saved != now:
        yield path, saved, now


def _short(value: Any) -> str:
    """A value in a sentence: a hash or a long list is cut."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
