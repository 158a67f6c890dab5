"""Flags of the command line: those that verbs share, and those made from the fields of a config. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

from cyclopts import CoercionError, Group, Parameter, Token, convert
from pydantic.fields import FieldInfo

from distillab.models.catalog import MODELS
from distillab.recipe import recipe_names
from distillab.settings import Section
from distillab.stages import PLANS
from distillab.terminal import Screen

COMMAND = Group("Command", sort_key=0)
METHOD = Group("Method", sort_key=1)

EVERY_FIELD = Parameter(name="*")
"""Every entry of the dictionary is a flag of its own."""

Injected: TypeAlias = Annotated[Screen, Parameter(parse=False)]
"""The screen, which the dispatcher passes in."""

Quiet: TypeAlias = Annotated[
    bool, Parameter(negative="", show_default=False, group=COMMAND, help="Say nothing but the result (and errors).")
]
Json: TypeAlias = Annotated[
    bool,
    Parameter(negative="", show_default=False, group=COMMAND, help="Give the result as one JSON object on stdout."),
]
DryRun: TypeAlias = Annotated[
    bool,
    Parameter(negative="", show_default=False, group=COMMAND, help="Build everything, show the plan, train nothing."),
]
Resume: TypeAlias = Annotated[
    Literal["auto"] | None,
    Parameter(
        group=COMMAND,
        help="auto: go on with the run of these settings if it was begun (in --output, else the newest under runs/).",
    ),
]
AllowCode: TypeAlias = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        group=COMMAND,
        help="Let recipes, run folders and weight files name functions of packages, and run those.",
    ),
]


def whole_numbers(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert words as cyclopts does, but refuse 2.5 where a whole number is asked for: it would be cut to 2."""
    for token in tokens:
        with contextlib.suppress(ValueError):
            if not float(token.value).is_integer():
                raise CoercionError(msg=f"{token.value} is not a whole number", token=token)
    return convert(kind, tokens)


def whole_numbers_or_none(kind: Any, tokens: Sequence[Token]) -> Any:
    """The same where `none` takes a recipe's value away."""
    return None if [token.value for token in tokens] == ["none"] else whole_numbers(kind, tokens)


Whole: TypeAlias = Annotated[int, Parameter(converter=whole_numbers)]

Completer: TypeAlias = Callable[[Any], Iterable[str]]
COMPLETERS: Mapping[str, Completer] = {
    **dict.fromkeys(("method", "methods"), lambda _: PLANS),
    **dict.fromkeys(("model", "teacher", "assistant", "student"), lambda _: MODELS),
}
"""What the shell offers as values of a field."""

Recipe: TypeAlias = Annotated[
    str | None,
    Parameter(
        group=COMMAND,
        help="Start from these values: a name ('distillab list recipes'), a TOML file or a run folder."
        " Flags override them.",
        completer=lambda _: recipe_names(),
    ),
]
Source: TypeAlias = Annotated[Path, Parameter(help="A run folder or a weight file (.safetensors, .pth).")]
Architecture: TypeAlias = Annotated[
    str | None, Parameter(help="Architecture of a weight file that does not say its own, such as cnn16.")
]


def _positive(_: Any, size: int) -> None:
    if size < 1:
        raise ValueError("it must be at least 1")


BatchSize: TypeAlias = Annotated[Whole, Parameter(help="Images at once.", validator=_positive)]

_METHOD_FIELDS = (
    *("methods", "seeds", "teacher_seeds", "axis", "tune"),
    *("method", "teacher", "teacher_model", "assistant", "student", "distill"),
)
_NOT_A_FLAG = ("stages", "alone")  # a table of any settings does not fit into one word: it is written in a recipe


def flags_of(
    config: type[Section],
    *,
    only: Sequence[str] = (),
    leaving_out: Sequence[str] = (),
    replaced: Mapping[str, type[Section]] | None = None,
) -> Any:
    """The type of a command's flags: a dictionary of the fields that were given, nested as the config is.

    A dictionary and not the config itself, for two reasons: only what was given may be laid over a recipe, and
    cyclopts would read the sources of all model classes for docstrings, which takes half a second.

    Args:
        config: Whose fields become flags; those of a section are `--section.field`, in a panel of their own.
        only: Take these fields alone; all of them if empty.
        leaving_out: Take all but these.
        replaced: Sections that stand in the place of fields.
    """
    fields: dict[str, Any] = {}
    for position, (name, field) in enumerate(config.model_fields.items()):
        if name in _NOT_A_FLAG or name in leaving_out or (only and name not in only):
            continue
        section = (replaced or {}).get(name, field.annotation)
        if isinstance(section, type) and issubclass(section, Section):
            panel = Group(_title(name), help=section.__doc__ or "", sort_key=_order(name, position))
            fields[name] = Annotated[flags_of(section), Parameter(group=panel)]
        elif name in _METHOD_FIELDS:
            fields[name] = Annotated[field.annotation, _flag(name, field), Parameter(group=METHOD)]
        else:
            fields[name] = Annotated[field.annotation, _flag(name, field)]
    return TypedDict(f"{config.__name__}Flags", fields, total=False)  # type: ignore[operator]


def _flag(name: str, field: FieldInfo) -> Parameter:
    default = field.get_default(call_default_factory=True)
    types = _leaves(field.annotation)
    counting = whole_numbers_or_none if type(None) in types else whole_numbers
    return Parameter(
        help=(field.description or "").replace("`", "'"),
        show_default=False if default in (None, "", {}) or isinstance(default, tuple) else str(default),
        completer=COMPLETERS.get(name),
        converter=counting if int in types else None,
    )


def _leaves(annotation: Any) -> set[Any]:
    """The types that a type is made of: int and None for `int | None`."""
    return {annotation}.union(*map(_leaves, get_args(annotation)))


def _title(name: str) -> str:
    return "Settings of the method" if name == "distill" else name.replace("_", " ").capitalize()


def _order(name: str, position: int) -> int:
    return 1 if name == "distill" else 10 + position
