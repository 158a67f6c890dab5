"""What losses and metrics ask of their tensors: shapes that fit, wide floats, samples kept apart to the end.

The checks look at shapes and types alone, so that none of them waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillab.errors import ConfigError, ShapeError

Reduction = Literal["none", "mean"]


def describe(tensor: Tensor) -> str:
    """Shape and type in words, such as "float32 [8, 10]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_logits(**named: Tensor) -> None:
    """Refuse logits that are not all floats of one shape [N, C].

    Args:
        **named: Raw scores by the names that a message shall give them.

    Raises:
        ShapeError: One is not [N, C] floats with N >= 1 and C >= 1, or two differ in shape.
    """
    for name, logits in named.items():
        if logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
            raise ShapeError(
                f"{name} are {describe(logits)}, not floats [N, C]",
                where=name,
                hint="pass raw scores, one row a sample and one column a class, for at least one sample",
            )
    if len({logits.shape for logits in named.values()}) > 1:
        shapes = " and ".join(f"{name} {list(logits.shape)}" for name, logits in named.items())
        raise ShapeError(
            f"{shapes} differ in shape",
            where=", ".join(named),
            hint="score the same samples over the same classes",
        )


def check_labels(labels: Tensor, logits: Tensor, *, mixed: bool) -> None:
    """Refuse labels that do not belong to these logits.

    Args:
        labels: [N] integers, or [N, C] floats where `mixed`.
        logits: [N, C], checked before.
        mixed: Whether [N, C] probabilities, as label smoothing and mixup give them, will do.

    Raises:
        ShapeError: Shape or type is another.
    """
    if labels.is_floating_point():
        fits = mixed and labels.shape == logits.shape
    else:
        fits = labels.shape == logits.shape[:1] and labels.dtype != torch.bool
    if not fits:
        choices = f"[{logits.shape[0]}] integers"
        if mixed:
            choices += f" or {list(logits.shape)} probabilities"
        raise ShapeError(f"labels are {describe(labels)}, not {choices}", where="labels")


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        ConfigError: It is not (also a ValueError).
    """
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(
            f"temperature {temperature} is not positive and finite",
            where="temperature",
            hint="1 leaves the distributions as they are, more softens them; 4 is usual",
        )


def widen(tensor: Tensor) -> Tensor:
    """The same numbers as float32, or as they are where they are wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def reduce_samples(losses: Tensor, reduction: Reduction) -> Tensor:
    """The last step of every loss: leave it by sample, or take the mean over N.

    Args:
        losses: [N].
        reduction: "mean" or "none".

    Returns:
        [] or [N].

    Raises:
        ConfigError: `reduction` is something else (also a ValueError).
    """
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean()
    raise ConfigError(
        f"unknown reduction '{reduction}'",
        where="reduction",
        hint="'mean' over the samples, or 'none' and reduce it yourself",
    )
