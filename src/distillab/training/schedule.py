"""The learning rate over a stage: a pure function of the step."""

from __future__ import annotations

import math

from distillab.training.config import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by at a step.

    Rises linearly from near zero over the warm-up, then: constant; linear or cosine down to zero at the last step;
    or, for multi_step, `factor` to the power of the milestones that have passed.

    Args:
        config: The shape.
        step: 0 <= step < total_steps, of this stage.
        total_steps: Of this stage.
        steps_per_epoch: Turns milestones, which are epochs, into steps.

    Returns:
        0 < multiplier <= 1.
    """
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # 0 <= done < 1
    if config.name == "linear":
        return 1.0 - done
    if config.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if config.name == "multi_step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones or ())
        return (0.1 if config.factor is None else config.factor) ** passed
    return 1.0
