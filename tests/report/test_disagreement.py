from __future__ import annotations

import itertools

import numpy as np

from distillab.report.disagreement import disagreements

EVERY_CASE = np.array(list(itertools.product(range(3), repeat=4)))  # label, teacher, alone, distilled


def kinds(cases: np.ndarray = EVERY_CASE, most_cases: int = 1000):
    return disagreements(*cases.T, most_cases=most_cases)


def test_every_image_on_which_they_differ_is_of_one_kind_and_no_other_image_is() -> None:
    found = [case.position for kind in kinds() for case in kind.cases]
    differ = [n for n, (_, *choices) in enumerate(EVERY_CASE.tolist()) if len(set(choices)) > 1]
    assert sorted(found) == differ
    assert sum(kind.count for kind in kinds()) == len(differ)


def test_a_kind_says_who_is_right() -> None:
    rights = {
        kind.title: {tuple(choice == case.label for choice in case.choices) for case in kind.cases} for kind in kinds()
    }
    assert all(len(patterns) == 1 for patterns in rights.values())
    told = {title: next(iter(patterns)) for title, patterns in rights.items()}
    assert told["Teacher and distilled student are right, the student alone is wrong"] == (True, False, True)
    assert told["Only the distilled student is right"] == (False, False, True)
    assert told["Both students are right, the teacher is wrong"] == (False, True, True)
    assert told["Only the distilled student is wrong"] == (True, True, False)
    assert told["Only the teacher is right"] == (True, False, False)
    assert told["All are wrong, not all in the same way"] == (False, False, False)
    assert len(rights) == 8


def test_a_mistake_of_the_teacher_is_said_only_where_the_student_makes_the_very_mistake_of_its_teacher() -> None:
    misled, otherwise = (
        next(kind for kind in kinds() if kind.title.startswith(start))
        for start in ("The teacher's very mistake", "Only the student alone")
    )
    assert all(case.choices[0] == case.choices[2] != case.label == case.choices[1] for case in misled.cases)
    assert all(len({case.label, case.choices[0], case.choices[2]}) == 3 for case in otherwise.cases)


def test_cases_come_from_all_over_and_all_are_counted() -> None:
    few = kinds(most_cases=2)
    for some, every in zip(few, kinds(), strict=True):
        assert some.count == every.count
        assert some.cases == tuple(every.cases[n] for n in sorted({0, len(every.cases) // 2}))


def test_where_all_agree_there_is_nothing() -> None:
    assert kinds(np.repeat(EVERY_CASE[:, :2], [1, 3], axis=1)) == ()
