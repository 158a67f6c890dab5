"""Parameter groups and the optimizer, from settings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distillab.errors import ConfigError
from distillab.training.config import OptimizerConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer; weights decay, biases and norm parameters (fewer than two axes) do not.

    The update is fused into one kernel, and is skipped on the device, without asking the host, while the optimizer's
    `found_inf` is 1 (the trainer sets it). Learning rates are 0-d tensors on the device for the same reason.

    Args:
        parameters: Those that learn.
        config: Kind and values.

    Raises:
        ConfigError: All of them are frozen, or there are none.
    """
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        raise ConfigError(
            "there is nothing to train: no parameter asks for a gradient",
            where="model",
            hint="requires_grad_(True) for what shall learn",
        )
    device = wanted[0].device
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = torch.tensor(config.learning_rate, device=device)
    if config.name == "sgd":
        momentum = 0.9 if config.momentum is None else config.momentum
        nesterov = momentum > 0.0 if config.nesterov is None else config.nesterov
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=True)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    # SGD asks for no such leave; these two refuse to be part of a CUDA graph without it.
    return kind(groups, lr=rate, fused=True, capturable=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set every group's rate, in place on the device."""
    for group in optimizer.param_groups:
        rate: Tensor = group["lr"]
        rate.fill_(value)


def clip_gradients(parameters: list[nn.Parameter], largest_norm: float | None) -> Tensor:
    """Shorten the gradient to `largest_norm` where it is longer; nothing waits for the device.

    Args:
        parameters: Those that learn; ones without a gradient do not count.
        largest_norm: Euclidean norm over all of them; None: the gradient stays as it is.

    Returns:
        [] its norm before: not finite where any part of it is not.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if largest_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm, foreach=True)
    return norm
