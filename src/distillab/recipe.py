"""Recipes: files of settings, shipped, the user's own, or those that a run has left. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distillab.config import DistillConfig, TrainConfig
from distillab.errors import ConfigError, nearest
from distillab.outside_code import names_code

_RECIPES = Path(__file__).parent / "recipes"

# Far more than any recipe needs, and so little that reading it takes no time, whatever stands in it.
_LARGEST_BYTES = 1 << 16
_LONGEST_LINE = 1 << 10
_DEEPEST = 6
_WHOLE_NUMBERS = range(-(2**63), 2**63)  # those of TOML


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.toml")))


def recipe_summary(name: str) -> str:
    """First comment line of a shipped recipe."""
    return (_RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def load_recipe(name: str, *, allow_code: bool = False) -> dict[str, Any]:
    """Read the values of a recipe.

    Args:
        name: A shipped recipe's name, a TOML file, or a run folder (its `config.toml`).
        allow_code: Let it name functions of packages (`package.module:function`), which would be run.

    Raises:
        ConfigError: No such recipe, not TOML, too large or nested too deeply, a setting unknown, or code is named
            without `allow_code`.
    """
    text = _text_of(name)
    try:
        values = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"not valid TOML: {error}", where=name, hint="see `distillab list recipes` for good ones"
        ) from None
    except RecursionError:
        raise _nested(name) from None
    known = {**TrainConfig.model_fields, **DistillConfig.model_fields}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown setting '{key}'", where=f"{name}: {key}", hint=nearest(key, known))
    return checked(values, name, allow_code=allow_code)


def checked(values: dict[str, Any], recipe: str, *, allow_code: bool) -> dict[str, Any]:
    """Values that came out of a file, once it is sure that they do no harm.

    Args:
        values: Nested as they were read.
        recipe: The file, for messages.
        allow_code: Let them name functions of packages (`package.module:function`), which would be run.

    Raises:
        ConfigError: They are nested too deeply, hold what no setting is, or name code without `allow_code`.
    """
    for place, value in _leaves(values, recipe):
        if isinstance(value, str) and "\0" in value:
            raise ConfigError("a zero byte, which no name has", where=place, hint="take it out")
        if isinstance(value, int) and value not in _WHOLE_NUMBERS:
            raise ConfigError("a number of more than 64 bits", where=place, hint="give a smaller one")
        if not allow_code and isinstance(value, str) and names_code(value):
            raise ConfigError(
                f"the recipe names code that would be run: {value}",
                where=place,
                hint="read that code; if you trust it, add --allow-code",
            )
    return values


def _text_of(name: str) -> str:
    path = _RECIPES / f"{name}.toml" if name in recipe_names() else Path(name)
    try:
        file = path / "config.toml" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"no recipe or file '{name}'", where="recipe", hint=nearest(name, recipe_names()))
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise ConfigError(
                f"no recipe is larger than {_LARGEST_BYTES >> 10} KiB",
                where=str(file),
                hint="a recipe is a TOML file of settings",
            )
        text = content.decode()
        if any(len(line) > _LONGEST_LINE for line in text.splitlines()):
            raise ConfigError(
                f"no line of a recipe is longer than {_LONGEST_LINE} letters",
                where=str(file),
                hint="write lists on several lines",
            )
        return text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the recipe: {error}", where=name, hint="a recipe is a TOML file in UTF-8"
        ) from None


def _leaves(values: Mapping[str, Any], recipe: str) -> Iterator[tuple[str, Any]]:
    """Every value at any depth, and its place: settings are laid over others from within sections, too.

    Raises:
        ConfigError: They are nested more deeply than settings are.
    """
    todo: list[tuple[list[str], Any]] = [([key], value) for key, value in values.items()]
    while todo:
        path, value = todo.pop()
        if len(path) > _DEEPEST:
            raise _nested(recipe)
        if isinstance(value, dict):
            todo += [([*path, key], inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [([*path, str(position)], inner) for position, inner in enumerate(value)]
        else:
            yield f"{recipe}: {'.'.join(path)}", value


def _nested(recipe: str) -> ConfigError:
    return ConfigError(
        f"values lie more than {_DEEPEST} levels deep", where=recipe, hint="a recipe is settings in sections"
    )
