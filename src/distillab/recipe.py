"""Recipes: files of settings, shipped, the user's own, or those that a run has left. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillab.config import DistillConfig, TrainConfig
from distillab.errors import ConfigError, nearest
from distillab.outside_code import names_code

_RECIPES = Path(__file__).parent / "recipes"


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
        ConfigError: No such recipe, not TOML, a setting unknown, or code is named without `allow_code`.
    """
    path = Path(name)
    if name in recipe_names():
        text = (_RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    else:
        file = path / "config.toml" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"no recipe or file '{name}'", where="recipe", hint=nearest(name, recipe_names()))
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the recipe: {error}", where=str(file), hint="a recipe is a TOML file in UTF-8"
            ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"not valid TOML: {error}", where=name, hint="see `distillab list recipes` for good ones"
        ) from None
    known = {**TrainConfig.model_fields, **DistillConfig.model_fields}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown setting '{key}'", where=f"{name}: {key}", hint=nearest(key, known))
    if not allow_code:
        _refuse_code(values, name)
    return values


def _refuse_code(values: Mapping[str, Any], recipe: str) -> None:
    for key in ("data", "model", "teacher", "teacher_model", "assistant", "student"):
        value = values.get(key)
        if isinstance(value, str) and names_code(value):
            raise ConfigError(
                f"the recipe names code that would be run: {value}",
                where=f"{recipe}: {key}",
                hint="read that code; if you trust it, add --allow-code",
            )
