"""What a run tells whoever watches it. The core reports; only the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """A stage begins: `title` such as "student by st" or "assistant by st (hint)"."""

    title: str
    role: str
    method: str
    epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class StepsDone:
    """Some steps were done; sent a few times a second at most and only when numbers were read anyway."""

    step: int
    total_steps: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is over.

    Attributes:
        epoch: 1-based.
        epochs: Of this stage.
        values: "loss", one "loss/<term>" a term, "train_top1", "validation_top1", "validation_loss",
            "learning_rate", "seconds"; fractions are 0..1; what a stage does not have is absent.
    """

    title: str
    epoch: int
    epochs: int
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A sentence that the user should read: an assumption made, a folder written, a choice taken."""

    text: str


Event = StageStarted | StepsDone | EpochEnded | Note
Observer = Callable[[Event], None]


def silent(event: Event) -> None:
    """The observer that says nothing."""
