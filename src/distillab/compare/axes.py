"""What a comparison varies besides the method and the seed."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distillab.config import OF_THE_PLACE, DistillConfig
from distillab.errors import ConfigError, nearest
from distillab.stages import ALONE, find_plan, plan_options

_ONE_FOR_ALL = (
    *("method", "stages", "seed", "output", "data", "data_dir", "image_size", "split"),
    *("teacher", "teacher_model", "teacher_training", "alone"),
)


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes in turn.

    Attributes:
        path: Its name, section by section.
        values: As TOML reads them.
    """

    path: tuple[str, ...]
    values: tuple[Any, ...]

    def concerns(self, method: str) -> bool:
        """Whether the setting has an effect on a row: those of methods and of assistants concern some rows only."""
        if self.path[0] == "distill":
            return method != ALONE and self.path[-1] in plan_options(find_plan(method)).model_fields
        if self.path[0] in ("assistant", "assistant_training"):
            return method != ALONE and find_plan(method).uses_assistant
        return True


def read_axes(texts: Sequence[str], methods: Sequence[str]) -> list[Axis]:
    """The axes of a comparison.

    Args:
        texts: Each `section.setting=value,value`.
        methods: That are compared.

    Raises:
        ConfigError: One is no axis, of an unknown setting, or of one that is the same for all rows.
    """
    axes = [_read(text) for text in texts]
    for axis in axes:
        name = ".".join(axis.path)
        if sum(axis.path == other.path for other in axes) > 1:
            raise ConfigError(f"'{name}' is there twice", where="axis", hint=f"give all its values at once: {name}=1,2")
        if len({repr(value) for value in axis.values}) < len(axis.values):
            raise ConfigError(f"'{name}' has a value twice", where="axis", hint="give each value once")
        if not any(axis.concerns(method) for method in (ALONE, *methods)):
            options = {name for method in methods for name in plan_options(find_plan(method)).model_fields}
            raise ConfigError(
                f"none of the methods has the setting '{name}'", where="axis", hint=nearest(axis.path[-1], options)
            )
    return axes


def _read(text: str) -> Axis:
    name, _, values = text.partition("=")
    path = tuple(name.replace("-", "_").split("."))
    section: Any = DistillConfig
    for part in path[:-1] if path[0] != "distill" else ():
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field is not None else None
    if not values or not name:
        raise ConfigError(
            f"'{text}' is no axis",
            where="axis",
            hint="write a setting and its values: optimizer.learning_rate=0.02,0.05",
        )
    if path[0] in _ONE_FOR_ALL:
        raise ConfigError(
            f"{path[0]} is one for all rows of a comparison",
            where="axis",
            hint="use --methods, --seeds or --teacher-seeds for what they vary, and a comparison each for the rest",
        )
    if path[0] != "distill" and path[-1] not in getattr(section, "model_fields", {}):
        known = [*DistillConfig.model_fields]
        raise ConfigError(f"unknown setting '{name}'", where="axis", hint=nearest(path[0], known))
    if path[0] in OF_THE_PLACE:
        raise ConfigError(
            f"{path[0]} changes no result, so there is nothing to compare",
            where="axis",
            hint=f"give one value: --{name.replace('_', '-')} VALUE",
        )
    return Axis(path, tuple(_value(word.strip()) for word in values.split(",")))


def _value(word: str) -> Any:
    """A word as TOML reads it, or as it stands."""
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A value in its sections."""
    for part in reversed(path):
        value = {part: value}
    result: dict[str, Any] = value
    return result
