"""Which settings of a row are tuned, and where their best values are sought."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from distillab.compare.axes import nested
from distillab.config import ConfigT, DistillConfig, RunConfig, merged, settings_of
from distillab.errors import ConfigError
from distillab.methods.base import TuningRange
from distillab.settings import validated
from distillab.stages import Plan, find_plan, plan_options, stage_method

_AROUND = 5.0  # learning rate and weight decay are sought within this factor of the recipe's, both ways


def search_space(config: RunConfig, *, leaving_out: Collection[str] = ()) -> dict[str, TuningRange]:
    """The settings to tune, by dotted name: learning rate, weight decay unless it is 0, and those of the method that
    have a `TuningRange` and an effect.

    Args:
        config: Resolved settings of a student's run.
        leaving_out: Settings that stay as they are, by dotted name.
    """
    space = {}
    for name in ("learning_rate", "weight_decay"):
        value = getattr(config.optimizer, name)
        if value:
            space[f"optimizer.{name}"] = TuningRange(value / _AROUND, value * _AROUND, log=True)
    if isinstance(config, DistillConfig):
        plan = find_plan(config.method, config.stages)
        for name, field in plan_options(plan).model_fields.items():
            for found in field.metadata:
                if isinstance(found, TuningRange) and _has_effect(plan, {**config.distill, name: found.low}):
                    space[f"distill.{name}"] = found
    return {name: found for name, found in space.items() if name not in leaving_out}


def with_settings(config: ConfigT, settings: Mapping[str, float]) -> ConfigT:
    """A run's settings with others laid over them.

    Args:
        config: Resolved settings.
        settings: Values by dotted name.

    Raises:
        ConfigError: One is unknown or out of bounds.
    """
    values = settings_of(config)
    for name, value in settings.items():
        values = merged(values, nested(name.split("."), value))
    return validated(type(config), values)


def _has_effect(plan: Plan, options: Mapping[str, Any]) -> bool:
    """Whether all stages take these options: a method refuses what is idle beside what the plan fixes."""
    try:
        for stage in plan.stages:
            stage_method(stage, options)
    except ConfigError:
        return False
    return True
