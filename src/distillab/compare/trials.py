"""Students trained to be judged by validation images: the test set is not read, and no files are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from distillab.config import AnyConfig, TrainConfig, regime_of
from distillab.errors import NonFiniteLossError
from distillab.evaluation.evaluate import Evaluation
from distillab.execution import Job, Trained, carry_out_together
from distillab.run import build_models, learners_regimes
from distillab.runtime.events import EpochEnded, Event, Observer, StageEnded, StageStarted, StepsDone, silent
from distillab.scene import Scene, open_scenes
from distillab.stages import find_plan
from distillab.training.config import Role


@dataclass(frozen=True)
class Trial:
    """One training, to see what its settings are worth.

    Attributes:
        row: Table and name of the row that is tuned.
        number: Among the row's trials, from 1.
        settings: Those that are tried, by dotted name.
        config: All settings; without a folder.
    """

    row: tuple[str, str]
    number: int
    settings: Mapping[str, float]
    config: AnyConfig

    @property
    def title(self) -> str:
        """Such as "st, trial 3"."""
        table, name = self.row
        return ", ".join(filter(None, (name, table, f"trial {self.number}")))


def carry_out_trials(trials: Sequence[Trial], observer: Observer, *, allow_code: bool) -> list[Evaluation | None]:
    """Carry out some trials at the same time on the same batches.

    Args:
        trials: All have the same data, seed, batches and device, and validation images.
        observer: Is told of progress.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        What each student is worth on the validation images, with the weights that are a run's result; None where it
        diverged.

    Raises:
        DistillabError: Of the kinds in `errors.py`.
    """
    with open_scenes([trial.config for trial in trials], observer, allow_code=allow_code) as scenes:
        teachers: dict[str, nn.Module] = {}
        jobs = [_job(scene, trial.title, teachers) for scene, trial in zip(scenes, trials, strict=True)]
        return [_judged(outcome) for outcome in carry_out_together(jobs)]


def _job(scene: Scene, title: str, teachers: dict[str, nn.Module]) -> Job:
    """A trial, ready to be carried out; those with one teacher have it in common."""
    config = scene.config
    place = replace(scene.place, observer=_titled(scene.place.observer, title))
    if isinstance(config, TrainConfig):
        return Job({config.role: scene.build(config.model, config.role)}, {config.role: regime_of(config)}, place)
    if config.teacher in teachers:
        scene.place = replace(scene.place, observer=silent)  # what there is to say of the teacher has been said
    models: dict[Role, nn.Module] = build_models(scene, config)
    models["teacher"] = teachers.setdefault(config.teacher, models["teacher"])
    plan = find_plan(config.method, config.stages)
    return Job(models, learners_regimes(config), place, plan, config.distill)


def _judged(outcome: dict[Role, Trained] | NonFiniteLossError) -> Evaluation | None:
    return None if isinstance(outcome, NonFiniteLossError) else outcome["student"].validation


def _titled(observer: Observer, title: str) -> Observer:
    """An observer that knows stages by their trial as well: those of other trials are called the same."""

    def observe(event: Event) -> None:
        if isinstance(event, StageStarted | StepsDone | EpochEnded | StageEnded):
            event = replace(event, title=f"{title}: {event.title}")
        observer(event)

    return observe
