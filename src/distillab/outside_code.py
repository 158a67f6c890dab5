"""Functions that a user names: `package.module:function`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distillab.errors import ConfigError, nearest

_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LIBRARIES = ("timm:", "torchvision:")
_OURS = "distillab."  # named in our own catalogs, without anybody's permission


def names_code(spec: str) -> bool:
    """Whether a model or data set is a function of somebody's package, rather than a name that is known here.

    Args:
        spec: Such as "cnn8", "timm:resnet18" (both are not) or "package.module:function" (is).
    """
    return _CODE.fullmatch(spec) is not None and not spec.startswith(_LIBRARIES)


def mentions_code(settings: object) -> bool:
    """Whether any of nested settings names a function: see `names_code`."""
    if isinstance(settings, Mapping):
        return any(map(mentions_code, settings.values()))
    if isinstance(settings, list | tuple):
        return any(map(mentions_code, settings))
    return isinstance(settings, str) and names_code(settings)


def find_function(target: str, *, where: str) -> Callable[..., Any]:
    """Import what `package.module:function` names. This runs the module's code.

    A module is looked for in the current folder as well, after all other places: who names one stands beside it.

    Args:
        target: Module and function.
        where: The setting that named it.

    Raises:
        ConfigError: It is no such name, the module cannot be imported or has no such function.
    """
    # Where `names_code` says no, nobody was asked for permission: Python imports modules of any name.
    if not names_code(target):
        raise ConfigError(f"'{target}' names no function", where=where, hint="write package.module:function")
    home, _, name = target.partition(":")
    if not home.startswith(_OURS):
        _look_here()
    try:
        module = importlib.import_module(home)
    # Whatever a module raises while it is imported, the setting that named it is the place to look.
    except Exception as error:
        raise ConfigError(
            f"module '{home}' cannot be imported: {type(error).__name__}: {error}",
            where=where,
            hint=_import_hint(home, name),
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"module '{home}' has no function '{name}'", where=where, hint=nearest(name, known))
    found: Callable[..., Any] = function
    return found


def _look_here() -> None:
    """Let modules of the current folder be found: for good, since what they import later may lie there too.

    Not before somebody has named code: until then what lies there, such as a folder `wandb` of results, is no package.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _import_hint(home: str, name: str) -> str:
    if home.endswith(".py"):
        return f"name the module, not its file: {home.removesuffix('.py')}:{name}"
    return "install it, run this in its folder, or put that on PYTHONPATH"
