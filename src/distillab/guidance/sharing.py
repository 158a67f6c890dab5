"""Teachers asked once a batch, for all students that want to know."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence

from distillab.data.batch import Batch, TrainingSource
from distillab.guidance.base import Guidance
from distillab.guidance.cached import CachedTeacher
from distillab.guidance.live import LiveTeacher
from distillab.models.features import ModelOutput


class SharedGuidance:
    """What guides several students on the same batches, each teacher being run once a batch.

    Live teachers of one model are asked together, for all layers that any student wants; the others are asked once
    for all students that have an equal one. A teacher whose answers are kept for later is not run a second time where
    it is asked live as well, as for a student that is in its hint stage.

    Args:
        wanted: One a student; None for a student without a teacher.
    """

    def __init__(self, wanted: Sequence[Guidance | None]) -> None:
        self._wanted = wanted
        groups: dict[Hashable, list[Guidance]] = {}
        for guidance in wanted:
            if guidance is not None:
                groups.setdefault(guidance.source, []).append(guidance)
        self._asked = {source: _together(group) for source, group in groups.items()}
        self._run = self._asked
        self._kept: dict[Hashable, CachedTeacher] = {}  # that take what a live teacher among `_run` says

    @property
    def phase(self) -> tuple[Hashable, ...]:
        """Changes when asking would do other work than before."""
        return tuple((source, guidance.phase) for source, guidance in self._asked.items())

    def begin_epoch(self, epoch: int, source: TrainingSource) -> None:
        """Make ready for the batches of an epoch."""
        for guidance in self._asked.values():
            guidance.begin_epoch(epoch, source)
        self._kept = {
            asked: guidance
            for asked, guidance in self._asked.items()
            if isinstance(guidance, CachedTeacher)
            and guidance.phase == "filling"
            and guidance.live.source in self._asked
        }
        self._run = {source: guidance for source, guidance in self._asked.items() if source not in self._kept}
        for guidance in self._kept.values():
            shared = guidance.live.source
            self._run[shared] = _together([self._run[shared], guidance.live])

    def __call__(self, batch: Batch) -> list[ModelOutput | None]:
        """Constants, one a student."""
        answers = {source: guidance(batch) for source, guidance in self._run.items()}
        for source, guidance in self._kept.items():
            answers[source] = guidance.keep(batch, answers[guidance.live.source])
        return [None if wanted is None else _part(answers[wanted.source], wanted) for wanted in self._wanted]

    def end_epoch(self, left_out: Iterable[Batch]) -> None:
        """Let those who keep answers complete the view.

        Args:
            left_out: Batches of the images of this view that no step has shown.
        """
        copies = itertools.tee(left_out, len(self._asked))  # still made only if somebody goes through them
        for guidance, batches in zip(self._asked.values(), copies, strict=True):
            guidance.end_epoch(batches)


def _together(group: Sequence[Guidance]) -> Guidance:
    """One that answers for all of the group, which have one source."""
    first = group[0]
    live = [guidance for guidance in group if isinstance(guidance, LiveTeacher)]
    if not isinstance(first, LiveTeacher):
        return first
    return LiveTeacher(
        first.model,
        layers=tuple(dict.fromkeys(layer for guidance in live for layer in guidance.layers)),
        stop=all(guidance.stop for guidance in live),
        compute=first.compute,
    )


def _part(answer: ModelOutput, wanted: Guidance) -> ModelOutput:
    """What one student asked for, of what all asked for."""
    if not isinstance(wanted, LiveTeacher):
        return answer
    features = {layer: answer.features[layer] for layer in wanted.layers}
    return ModelOutput(None if wanted.stop else answer.logits, features)
