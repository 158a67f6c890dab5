"""What every section of the settings has in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from distillab.errors import ConfigError, nearest

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    # Built when first used: `--help` never validates.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)


def validated(section: type[SectionT], values: Mapping[str, Any], *, where: str = "") -> SectionT:
    """Make a section from plain values.

    Args:
        section: Which.
        values: Plain values, nested as the section is.
        where: Dotted path of the section, put before the names of fields in errors.

    Raises:
        ConfigError: A name is unknown (the nearest right one is told) or a value is out of bounds.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise explained(error, section, where=where) from None


def explained(error: ValidationError, section: type[BaseModel], *, where: str = "") -> ConfigError:
    """The first complaint of pydantic as one of ours."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"]]
    field = ".".join([*([where] if where else []), *path])
    if first["type"] == "extra_forbidden":
        owner = _section_at(section, path[:-1])
        known = owner.model_fields if owner else ()
        return ConfigError(f"unknown setting '{path[-1]}'", where=field, hint=nearest(path[-1], known))
    if first["type"] == "model_type":
        hint = f"put its settings below a line [{field}]"
        return ConfigError(f"{first['input']!r} stands where a section is expected", where=field, hint=hint)
    message = first["msg"].removeprefix("Value error, ")
    reason = (message[0].lower() + message[1:]).replace("input should", "it should")
    if first["type"] in ("value_error", "missing"):
        reason, _, advice = reason.partition(": ")
        return ConfigError(reason, where=field or None, hint=advice or _meaning(section, path))
    return ConfigError(f"{first['input']!r} does not work: {reason}", where=field, hint=_meaning(section, path))


def _section_at(section: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    for name in path:
        field = section.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        section = field.annotation
    return section


def _meaning(section: type[BaseModel], path: list[str]) -> str | None:
    """What the field is for: its help text."""
    owner = _section_at(section, path[:-1]) if path else None
    field = owner.model_fields.get(path[-1]) if owner else None
    return f"give another value; it is: {field.description}" if field and field.description else None
