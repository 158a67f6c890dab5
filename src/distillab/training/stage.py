"""One stage of training: what goes in, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from distillab.data.batch import Batch, TrainingSource
from distillab.evaluation.evaluate import Evaluation
from distillab.guidance.base import Guidance
from distillab.guidance.cache import CacheKey
from distillab.guidance.cached import CachedTeacher
from distillab.guidance.live import LiveTeacher
from distillab.methods.base import Method
from distillab.training.config import Role
from distillab.training.step import Learner

Record = Callable[[Mapping[str, Any]], None]
"""Takes what an epoch brought: one line of `metrics.jsonl`."""


@dataclass(frozen=True)
class Feed:
    """The images of a run, in batches.

    Attributes:
        training: What is learnt from.
        validation: What choices are made by; None: none are made.
        test: Read once, after the last step; None: not at all.
        sample: Some training images, shuffled, as they are (a user's loader: as it gives them), to try a teacher on;
            None where nobody is tried.
        num_classes: C.
        image_size: Side in pixels.
        key: All that a teacher's logits of the training images depend on, but for the teacher; None where that is
            not known.
        is_resident: The images lie on the device; otherwise they are streamed to it.
    """

    training: TrainingSource
    validation: Iterable[Batch] | None
    test: Iterable[Batch] | None
    sample: Iterable[Batch] | None
    num_classes: int
    image_size: int
    key: CacheKey | None = None
    is_resident: bool = True


@dataclass
class Best:
    """Weights of the epoch with the lowest validation loss."""

    epoch: int
    validation: Evaluation
    state: dict[str, Tensor]

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"epoch": self.epoch, "validation": self.validation.as_dict(), "state": self.state}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Best:
        """From a checkpoint; tensors stay where they are."""
        return cls(saved["epoch"], Evaluation(**saved["validation"]), dict(saved["state"]))


@dataclass(frozen=True)
class StageReport:
    """What a stage did.

    Attributes:
        title: Such as "student by st (hint)".
        role: Who learnt.
        method: The method's name.
        epochs: That were trained; fewer than planned where it stopped early.
        steps: Updates.
        terms: Names of the loss terms, as logged.
        seconds: Wall time, validation included; students that are trained together share the time of what they share.
        history: One record an epoch.
        best: None without validation, and where another stage of the same student follows.
        last: Weights of the last step, where their moving average takes their place; None elsewhere.
        validation: Of the weights that the stage ends with; None without validation or where it stops at a layer.
        validation_before_recalibration: The same, with BatchNorm statistics as training left them.
    """

    title: str
    role: Role
    method: str
    epochs: int
    steps: int
    terms: tuple[str, ...]
    seconds: float
    history: tuple[Mapping[str, float], ...] = ()
    best: Best | None = field(default=None, repr=False)
    last: dict[str, Tensor] | None = field(default=None, repr=False)
    validation: Evaluation | None = None
    validation_before_recalibration: Evaluation | None = None

    def saved(self) -> dict[str, Any]:
        """For a checkpoint."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("best", "validation", "validation_before_recalibration"):
            part = parts[name]
            parts[name] = None if part is None else part.saved() if name == "best" else part.as_dict()
        return parts

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> StageReport:
        """From a checkpoint."""
        parts = dict(saved, terms=tuple(saved["terms"]), history=tuple(saved["history"]))
        for name in ("best", "validation", "validation_before_recalibration"):
            if parts[name] is not None:
                parts[name] = Best.load(parts[name]) if name == "best" else Evaluation(**parts[name])
        return cls(**parts)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What a `Record` has been given, epoch by epoch."""
        return lines(self.title, self.role, self.history)


def lines(title: str, role: Role, history: Iterable[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """What a `Record` is given of a stage, epoch by epoch.

    Args:
        title: Of the stage.
        role: Who learns.
        history: The numbers of its epochs, from the first one on.
    """
    for epoch, values in enumerate(history, start=1):
        yield {"stage": title, "role": role, "epoch": epoch, **values}


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Attributes:
        learner: What learns; its student is changed in place.
        method: What it minimises.
        guidance: What guides it, or None.
        epochs: How many.
        title: For people.
        role: Who learns.
        first_epoch: Epochs that this student has behind it, so that stages go on through the views, not over them.
        final: The student's last stage, after which its BatchNorm statistics are re-estimated.
    """

    learner: Learner
    method: Method[Any]
    guidance: Guidance | None
    epochs: int
    title: str
    role: Role
    first_epoch: int = 0
    final: bool = True

    @property
    def teacher(self) -> LiveTeacher | None:
        """The teacher behind whatever guides, or None."""
        guidance = self.guidance.live if isinstance(self.guidance, CachedTeacher) else self.guidance
        return guidance if isinstance(guidance, LiveTeacher) else None
