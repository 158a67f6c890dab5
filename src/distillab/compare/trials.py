"""Students trained to be judged by validation images: the test set is not read, and no files are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillab.config import AnyConfig
from distillab.errors import NonFiniteLossError
from distillab.evaluation.evaluate import Evaluation
from distillab.execution import Trained, carry_out_together
from distillab.run import Teachers, prepare
from distillab.runtime.events import Observer
from distillab.scene import open_scenes
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
        teachers = Teachers()
        runs = [prepare(scene, teachers) for scene in scenes]
        for run, trial in zip(runs, trials, strict=True):
            run.retitle(f"{trial.title}: {{}}")
        return [_judged(outcome) for outcome in carry_out_together([run.job() for run in runs])]


def _judged(outcome: dict[Role, Trained] | NonFiniteLossError) -> Evaluation | None:
    return None if isinstance(outcome, NonFiniteLossError) else outcome["student"].validation
