"""What a run tells whoever watches it. The core reports; only the command line prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from distillab.tables import amount


@dataclass(frozen=True)
class RunStarted:
    """A run begins and owns its folder; what goes wrong from here on is written down there.

    Attributes:
        run_dir: The folder.
        resume: The command by which it goes on if something stops it.
    """

    run_dir: Path
    resume: str


@dataclass(frozen=True)
class StageStarted:
    """A stage begins: `title` such as "student by st" or "assistant by multi (hint)"."""

    title: str
    role: str
    method: str
    epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class StepsDone:
    """Some steps were done; sent a few times a second at most and only when numbers were read anyway.

    Attributes:
        title: Of the stage: several may be going on at once.
        step: Of this stage, 1-based.
        total_steps: Of this stage.
        loss: Mean over the epoch so far, nats; None where it was not read.
        train_top1: Share of right answers in the epoch so far, 0..1; None where it was not read.
    """

    title: str
    step: int
    total_steps: int
    loss: float | None = None
    train_top1: float | None = None


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is over.

    Attributes:
        epoch: 1-based.
        epochs: Of this stage.
        values: "loss", one "loss/<term>" and "share/<term>" a term, "train_top1", "validation_top1", "validation_loss",
            "learning_rate", "seconds"; fractions are 0..1; what a stage does not have is absent.
    """

    title: str
    epoch: int
    epochs: int
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageEnded:
    """A stage is over, after so many epochs: fewer than planned where it stopped early."""

    title: str
    epochs: int


@dataclass(frozen=True)
class Note:
    """A sentence that the user should read: an assumption made, a folder written, a choice taken."""

    text: str


Event = RunStarted | StageStarted | StepsDone | EpochEnded | StageEnded | Note
Observer = Callable[[Event], None]


def silent(event: Event) -> None:
    """The observer that says nothing."""


def retitled(observer: Observer, pattern: str) -> Observer:
    """An observer that knows the stages of one run by other titles: several with equal ones may be going on.

    Args:
        observer: Is told.
        pattern: Such as "{} [2]", the title standing for the braces.
    """

    def observe(event: Event) -> None:
        if isinstance(event, StageStarted | StepsDone | EpochEnded | StageEnded):
            event = replace(event, title=pattern.replace("{}", event.title, 1))
        observer(event)

    return observe


def in_words(event: Event) -> str | None:
    """An event as one line of a log; None for those that are too many or say nothing to a reader."""
    match event:
        case Note(text=text):
            return text
        case StageStarted():
            return f"{event.title}: {amount(event.epochs, 'epoch')} of {amount(event.steps_per_epoch, 'step')}"
        case EpochEnded():
            epoch = f"{event.epoch:>{len(str(event.epochs))}}/{event.epochs}"
            return f"{event.title}  epoch {epoch}  {describe_values(event.values)}".rstrip()
    return None


def describe_values(values: Mapping[str, float]) -> str:
    """The numbers of an epoch in words: loss and its terms' shares, accuracies, seconds; what is absent is left out."""
    words = []
    if "loss" in values:
        shares = [f"{n.removeprefix('share/')} {v:.0%}" for n, v in values.items() if n.startswith("share/")]
        words.append(f"loss {values['loss']:.4f}" + (f" ({', '.join(shares)})" if shares else ""))
    if "train_top1" in values:
        words.append(f"train {values['train_top1']:.1%}")
    if "validation_top1" in values:
        words.append(f"validation {values['validation_top1']:.1%}")
    if "seconds" in values:
        words.append(f"{values['seconds']:.1f} s")
    return "  ".join(words)
