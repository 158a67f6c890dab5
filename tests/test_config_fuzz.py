"""Any settings at all: a run of them ends well, or is refused in one clear error."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import math
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

import tiny
from distillab.__main__ import main
from distillab.commands.distill import HELP_WORDS
from distillab.config import DistillConfig, TrainConfig, merged
from distillab.settings import Section
from distillab.stages import PLANS, find_plan, plan_options

CODES = {2, 3, 4, 5}  # settings, data, files, divergence: see errors.py
SMALL = {**tiny.RECIPE, "offline": True, "training": {"epochs": 1, "batch_size": 32, "precision": "float32"}}

# Settings that may be as large as one likes, and then take as long.
LARGEST = {"epochs": 2, "image_size": 24, "threads": 2, "views": 3}
# Names that are known mean models and data that take minutes, or a download.
KNOWN = {
    "data": ["tiny:dataset"],
    "model": ["tiny:build", "tiny:build_wide"],
    "teacher": ["tiny:build_wide"],
    "assistant": ["tiny:build"],
    "student": ["tiny:build"],
    "method": [*PLANS, "custom", "soft_target", "hint", "merit_based"],
    "device": ["auto", "cpu", "cuda", "mps", "meta"],
}

NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 10**6, 2**31, 2**63 - 1, -(2**63), 10**30])
REALS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 5e-324, 1e18, 1e308, math.inf, -math.inf, math.nan]),
    st.floats(-2.0, 2.0),
)
WORDS = st.one_of(
    st.sampled_from(["", " ", ".", "..", "/", "a:b", "a.b:c", "tiny:nothing", "true", "1", "none", "é", "\x1b[31m"]),
    st.text(max_size=8),
)
ANYTHING = st.recursive(
    st.one_of(NUMBERS, REALS, WORDS, st.booleans(), st.just(datetime.date(2026, 1, 1))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=4,
)


def values_of(name: str, annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Values of a field's own type, in and out of its bounds."""
    if name in KNOWN:
        return st.one_of(st.sampled_from(KNOWN[name]), WORDS)
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    origin = get_origin(kind)
    if origin is Literal:
        return st.one_of(st.sampled_from(get_args(kind)), WORDS)
    if kind is bool:
        return st.booleans()
    if kind in (int, float):
        edges = [value for bound in bounds for value in vars_of(bound) if isinstance(value, int | float)]
        near = [edge + step for edge in edges for step in (-1, -0.5, 0, 0.5, 1)]
        return st.one_of(
            st.sampled_from([kind(value) for value in near] or [kind(1)]), NUMBERS if kind is int else REALS
        )
    if isinstance(kind, type) and issubclass(kind, Section):
        return fields_of(kind)
    if origin is tuple:
        return st.lists(values_of("", get_args(kind)[0], []), max_size=3)
    if origin is dict:
        return options_of(name)
    return WORDS


def vars_of(bound: Any) -> Iterator[Any]:
    for name in ("ge", "gt", "le", "lt"):
        yield getattr(bound, name, None)


def options_of(name: str) -> st.SearchStrategy[Any]:
    """What a section holds whose names depend on the method."""
    if name == "alone":
        return fields_of(DistillConfig)
    return st.sampled_from(sorted(PLANS)).flatmap(lambda plan: fields_of(plan_options(find_plan(plan))))


def field_of(name: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    own = values_of(name, field.annotation, field.metadata)
    largest = LARGEST.get(name, math.inf)
    return st.one_of(own, own, own, ANYTHING).filter(lambda value: not is_larger(value, largest))


def is_larger(value: Any, largest: float) -> bool:
    return isinstance(value, int | float | str) and str(value).isdecimal() and int(value) > largest


def fields_of(config: type[Section]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three settings."""
    one = st.sampled_from(sorted(config.model_fields)).flatmap(
        lambda name: field_of(name, config.model_fields[name]).map(lambda value: {name: value})
    )
    return st.one_of(
        st.lists(one, min_size=1, max_size=3).map(lambda parts: {k: v for part in parts for k, v in part.items()}),
        st.dictionaries(WORDS, ANYTHING, min_size=1, max_size=1),
    )


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    before, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)
            signal.signal(signal.SIGTERM, handler)


def words_of(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The flags, with their words, that say the same as a recipe; those that would take long are left out."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from words_of(value, (*path, name))
            continue
        given = [str(part) for part in value] if isinstance(value, list) else [str(value)]
        if path or name not in ("output", "recipe", "resume"):
            whole = [word for word in given if is_more(word, LARGEST.get(name, math.inf))]
            if not whole:
                yield flag(path, name, value, given)


def flag(path: tuple[str, ...], name: str, value: Any, given: list[str]) -> list[str]:
    if isinstance(value, bool):
        return ["--" + ".".join((*path, name if value else f"no-{name}")).replace("_", "-")]
    return ["--" + ".".join((*path, name)).replace("_", "-"), *given]


def is_more(word: str, largest: float) -> bool:
    try:
        return float(word) > largest
    except ValueError:
        return False


def words_from(config: type[Section]) -> st.SearchStrategy[list[str]]:
    """Flags of some settings, and now and then a word that belongs nowhere."""

    def mixed(values: dict[str, Any], stray: list[str], where: int) -> list[str]:
        words = [word for words in words_of(values) for word in words]
        words[where % (len(words) + 1) : 0] = stray
        return [word.replace("\0", "") for word in words]  # which no system passes to a program

    stray = st.one_of(st.just([]), st.just([]), st.lists(WORDS, min_size=1, max_size=2))
    return st.builds(mixed, fields_of(config), stray, st.integers(0, 9)).filter(
        lambda words: HELP_WORDS.isdisjoint(words) and "--version" not in words
    )


def check_ends_well_or_is_refused(verb: str, values: Mapping[str, Any], words: Sequence[str] = ()) -> int:
    """Run a verb with settings, from a recipe and as words, laid over small ones; gives the exit code."""
    recipe = merged(SMALL, values)
    out, err = _Stream(), _Stream()
    with own_folder() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        (folder / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
        code = main([verb, "--recipe", "recipe.toml", "--output", "run", "--allow-code", "--quiet", "--json", *words])
        if code == 0:
            assert (folder / "run" / "result.json").exists()
    said = err.getvalue()
    if code == 0:
        assert json.loads(out.getvalue())["stages"]
        return code
    # A rate that float32 has no number for moves nothing: that ends with the guard's code, which bugs have, too.
    assert code in CODES or (code == 1 and said.startswith("error: the student did not learn")), (code, said)
    assert out.getvalue() == ""
    assert said.startswith("error: "), said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if not line.startswith("  then:  ")]
    assert len(lines) <= 3, said
    assert len(said) < 2000
    assert all(character.isprintable() or character == "\n" for character in said)
    return code


class _Stream(io.StringIO):
    """Stands in for a standard stream, whose errors can be set."""

    def reconfigure(self, **_: Any) -> None:
        """Takes any text as it is."""


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_the_settings_that_others_are_laid_over_work(verb: str) -> None:
    assert check_ends_well_or_is_refused(verb, {}) == 0


@settings(derandomize=True, deadline=None, max_examples=30)
@given(values=fields_of(TrainConfig))
def test_any_settings_of_a_model_alone_work_or_are_refused(values: dict[str, Any]) -> None:
    check_ends_well_or_is_refused("train", values)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(values=fields_of(DistillConfig))
def test_any_settings_of_distilling_work_or_are_refused(values: dict[str, Any]) -> None:
    check_ends_well_or_is_refused("distill", values)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(words=words_from(TrainConfig))
def test_any_words_of_a_model_alone_work_or_are_refused(words: list[str]) -> None:
    check_ends_well_or_is_refused("train", {}, words)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(words=words_from(DistillConfig))
def test_any_words_of_distilling_work_or_are_refused(words: list[str]) -> None:
    check_ends_well_or_is_refused("distill", {}, words)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=800)
@given(verb=st.sampled_from(["train", "distill"]), values=st.one_of(fields_of(TrainConfig), fields_of(DistillConfig)))
def test_many_more_settings_work_or_are_refused(verb: str, values: dict[str, Any]) -> None:
    check_ends_well_or_is_refused(verb, values)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=800)
@given(verb=st.sampled_from(["train", "distill"]), words=st.one_of(words_from(TrainConfig), words_from(DistillConfig)))
def test_many_more_words_work_or_are_refused(verb: str, words: list[str]) -> None:
    check_ends_well_or_is_refused(verb, {}, words)
