from __future__ import annotations

import pytest

from distillab.bench.config import DEFAULT_CASES, BenchConfig, planned_cases
from distillab.errors import ConfigError


def pairs(**values: object) -> list[tuple[str, str]]:
    return [(case.work, case.method) for case in planned_cases(BenchConfig.model_validate(values))]


def test_unasked_the_usual_comparisons_are_made():
    assert pairs() == list(DEFAULT_CASES)


def test_works_and_methods_are_crossed_where_they_fit():
    assert pairs(work=("cnn8-cnn16", "cnn8"), method=("st", "mbd-soft", "alone")) == [
        ("cnn8-cnn16", "st"),
        ("cnn8-cnn16", "mbd-soft"),
        ("cnn8", "alone"),
    ]


def test_commas_separate_like_spaces_and_nothing_is_done_twice():
    assert pairs(work=("cnn8,cnn16", "cnn8")) == [("cnn8", "alone"), ("cnn16", "alone")]


def test_an_alias_is_the_method_itself():
    assert pairs(work=("cnn8-cnn16",), method=("kd",)) == [("cnn8-cnn16", "st")]


def test_a_work_names_teacher_and_student():
    (case,) = planned_cases(BenchConfig(work=("resnet50-resnet98",), method=("st",)))
    assert (case.teacher, case.student) == ("resnet50", "resnet98")
    (case,) = planned_cases(BenchConfig(work=("resnet98",)))
    assert (case.teacher, case.student) == (None, "resnet98")


@pytest.mark.parametrize(
    ("values", "where", "hint"),
    [
        ({"work": ("cnn8-cnn61",)}, "work", "did you mean 'cnn8-cnn16'?"),
        ({"work": ("cnn88",)}, "work", "did you mean 'cnn8'?"),
        ({"work": ("cnn8-cnn12-cnn16",)}, "work", "did you mean 'cnn12-cnn16'?"),
        ({"work": ("cnn8",), "method": ("st",)}, "method", "--method alone"),
        ({"work": ("cnn8-cnn16",), "method": ("alone",)}, "method", "st"),
        ({"work": ("cnn8-cnn16",), "method": ("st", "alone")}, "work", "--work cnn8"),
        ({"work": ("cnn8",), "method": ("alone", "st")}, "work", "--work cnn8-cnn16"),
        ({"method": ("mbd-sofd",)}, "method", "did you mean 'mbd-soft'?"),
        ({"method": ("takd",)}, "method", "known: mbd-delta"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(values, where, hint):
    with pytest.raises(ConfigError) as caught:
        pairs(**values)
    assert caught.value.where == where
    assert caught.value.hint is not None
    assert hint in caught.value.hint
