"""Where teacher, student alone and distilled student do not choose the same class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillab.data.splits import evenly_spread

# Who is right (teacher, alone, distilled), whether the distilled student chooses as its teacher does (None: either),
# and what that is; in the order of interest.
_KINDS = (
    ((True, False, True), None, "Teacher and distilled student are right, the student alone is wrong"),
    ((False, False, True), None, "Only the distilled student is right"),
    ((False, True, True), None, "Both students are right, the teacher is wrong"),
    ((False, True, False), True, "The teacher's very mistake, the student alone is right"),
    ((False, True, False), False, "Only the student alone is right, the others err in two ways"),
    ((True, True, False), None, "Only the distilled student is wrong"),
    ((True, False, False), None, "Only the teacher is right"),
    ((False, False, False), None, "All are wrong, not all in the same way"),
)


@dataclass(frozen=True)
class Case:
    """An image on which models disagree.

    Attributes:
        position: Among the test images.
        label: The right class.
        choices: Of teacher, student alone and distilled student.
    """

    position: int
    label: int
    choices: tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """Images on which the same models are right, in the same way.

    Attributes:
        title: Who is right.
        count: How many test images are of this kind.
        cases: Some of them, from all over the test images.
    """

    title: str
    count: int
    cases: tuple[Case, ...]


def disagreements(
    labels: NDArray[np.int64],
    teacher: NDArray[np.int64],
    alone: NDArray[np.int64],
    distilled: NDArray[np.int64],
    *,
    most_cases: int,
) -> tuple[Kind, ...]:
    """Sort the images on which not all three choose alike by who is right.

    Args:
        labels: [N] right classes.
        teacher: [N] its choices.
        alone: [N] those of the student alone.
        distilled: [N] those of the distilled student.
        most_cases: So many images of each kind are listed, evenly spread.

    Returns:
        The kinds that there are.
    """
    choices = np.stack([teacher, alone, distilled], axis=1)  # [N, 3]
    right = choices == labels[:, None]
    differ = (choices != choices[:, :1]).any(axis=1)
    found = []
    for pattern, follows, title in _KINDS:
        chosen = differ & (right == pattern).all(axis=1)
        if follows is not None:
            chosen &= (distilled == teacher) == follows
        positions = np.flatnonzero(chosen)
        cases = tuple(
            Case(int(p), int(labels[p]), (int(teacher[p]), int(alone[p]), int(distilled[p])))
            for p in evenly_spread(positions, most_cases)
        )
        if cases:
            found.append(Kind(title, len(positions), cases))
    return tuple(found)
