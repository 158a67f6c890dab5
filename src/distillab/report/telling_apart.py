"""What tells runs apart: the settings in which they differ, as words of a name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distillab.config import OF_THE_PLACE, RunConfig, settings_of
from distillab.results.run_record import readable, shown_path

# Two runs that differ in these alone are one variant.
_NOT_OF_A_VARIANT = frozenset(("seed", *OF_THE_PLACE))


def flat_settings(config: RunConfig) -> dict[str, str]:
    """Settings that tell variants apart: dotted name -> value; those of the seed and of the place do not."""
    return {
        name: value for name, value in all_settings(config).items() if name.partition(".")[0] not in _NOT_OF_A_VARIANT
    }


def all_settings(config: RunConfig) -> dict[str, str]:
    """Every setting that has a value: dotted name -> value."""
    return dict(sorted(_leaves(settings_of(config), "")))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield readable(prefix + key), readable(value if isinstance(value, str) else json.dumps(value))


def told_apart(bases: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The same names; where one is there several times, with the settings in which these differ."""
    names = list(bases)
    for base in {base for base in bases if bases.count(base) > 1}:
        alike = [number for number, other in enumerate(bases) if other == base]
        known = dict.fromkeys(key for number in alike for key in settings[number])
        keys = [key for key in known if len({settings[number].get(key) for number in alike}) > 1]
        for number in alike:
            own = settings[number]
            told = (f"{key.rpartition('.')[2].replace('_', ' ')} {own.get(key, 'not set')}" for key in keys)
            names[number] = readable(", ".join(filter(None, [base, *told])))
    return names


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, numbered where some are alike."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def ends_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart, two parts or more."""
    for length in range(2, max((len(path.parts) for path in paths), default=0)):
        ends = [Path(*path.parts[-length:]) for path in paths]
        if len(set(ends)) == len(set(paths)):
            return [shown_path(end) for end in ends]
    return [shown_path(path) for path in paths]
