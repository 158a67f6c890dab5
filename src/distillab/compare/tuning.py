"""Each row of a comparison at its best: as many trials for all, judged by validation images and chosen by Optuna."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillab.compare.conduct import Spread, Task
from distillab.compare.finished import Expected
from distillab.compare.plan import ComparisonPlan, Group, PlannedRun, file_name, trained_together
from distillab.compare.search_space import search_space, with_settings
from distillab.compare.trials import Trial, carry_out_trials
from distillab.errors import CheckpointError, ConfigError
from distillab.evaluation.evaluate import Evaluation
from distillab.runtime.events import Note, Observer
from distillab.runtime.files import storage_error, write_text
from distillab.runtime.reproducibility import derived_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TUNING_FORMAT = 1

_AT_ONCE = 4  # trials of a row that are chosen together: so many machines have something to do

Row = tuple[str, str]
Settings = Mapping[str, float]


@dataclass(frozen=True)
class Tuned:
    """What the trials of a row have found.

    Attributes:
        settings: The best ones, by dotted name; None if all trials diverged.
        validation_top1: What they came to in their trial, 0..1; None without a trial.
        validation_nll: The same, nats.
        trials: How many there were.
        diverged: How many of them.
    """

    settings: Settings | None
    validation_top1: float | None
    validation_nll: float | None
    trials: int
    diverged: int


def require_optuna() -> None:
    """See that Optuna is there, and have it say nothing but warnings.

    Raises:
        ConfigError: It is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"tuning needs Optuna, which cannot be imported: {error}",
            where="tune",
            hint="pip install 'distillab[tune]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def tune(plan: ComparisonPlan, spread: Spread, *, observer: Observer, allow_code: bool) -> dict[Row, Settings]:
    """Find the best settings of each row: those of the trial with the highest top-1 on the validation images, of equal
    ones the lowest loss.

    A row's first trial has the recipe's settings, as far as they lie in its search space; the others are chosen by TPE
    from those before, the first ten at random. All have one seed, which is none of the comparison's, and the first
    teacher. `tuning/<row>.log` keeps them, so none is made twice; what was found is written to `tuning.json`.

    Args:
        plan: Its teachers are trained.
        spread: Carries out the trials.
        observer: Is told of progress.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        The settings by dotted name, by table and name of the row. A row is missing if all its trials diverged.

    Raises:
        ConfigError: Optuna is missing; or the trials that are there are of other settings, images, or another teacher.
        CheckpointError: A row's file is damaged.
        DistillabError: Whatever a run may raise.
    """
    require_optuna()
    expected = Expected(observer, allow_code=allow_code)
    studies = {row: _RowStudy(row, run, plan, expected) for row, run in _first_runs(plan).items()}
    while batches := _next_batches(list(studies.values())):
        work = partial(carry_out_trials, allow_code=allow_code)
        tasks = [Task(_titles(batch), batch[0].config, partial(work, batch)) for batch in batches]
        for batch, outcomes in zip(batches, spread(tasks), strict=True):
            for trial, validation in zip(batch, outcomes, strict=True):
                studies[trial.row].tell(trial, validation)
                came_to = "it diverged" if validation is None else f"validation {validation.top1:.1%}"
                observer(Note(f"{trial.title} of {plan.tune}: {came_to}"))
    found = {row: study.found() for row, study in studies.items()}
    rows = [{"table": table, "row": name, **asdict(tuned)} for (table, name), tuned in found.items()]
    record = {"format_version": TUNING_FORMAT, "tune": plan.tune, "rows": rows}
    write_text(plan.folder / "tuning.json", json.dumps(record, indent=2) + "\n")
    return {row: tuned.settings for row, tuned in found.items() if tuned.settings is not None}


def with_tuned(plan: ComparisonPlan, found: Mapping[Row, Settings]) -> ComparisonPlan:
    """The plan with tables of the tuned rows added: the same seeds and teachers, and the tuned student alone.

    Args:
        plan: Of the recipe's own settings.
        found: Settings by dotted name, by table and name of the row; a row that is missing is left out.
    """
    home = plan.folder / f"tuned-{plan.tune}"
    groups = []
    for group in plan.groups:
        folder = home / group.folder.relative_to(plan.folder)
        runs = [_tuned(run, folder, found[run.table, run.row]) for run in group.runs if (run.table, run.row) in found]
        if runs:
            groups.append(Group(folder, tuple(runs)))
    return replace(plan, groups=(*plan.groups, *groups))


def trials_made(plan: ComparisonPlan) -> dict[Row, int]:
    """How many trials of each row are done already.

    Raises:
        CheckpointError: A row's file is damaged.
    """
    paths = {row: _journal(plan, row) for row in plan.rows}
    return {row: len(_opened(path).trials) if path.is_file() else 0 for row, path in paths.items()}


def _tuned(run: PlannedRun, folder: Path, settings: Settings) -> PlannedRun:
    config = with_settings(run.config, settings).model_copy(update={"output": folder / run.folder.name})
    table = ", ".join(filter(None, (run.table, "tuned")))
    return replace(run, table=table, config=config, tuned=settings)


def _first_runs(plan: ComparisonPlan) -> dict[Row, PlannedRun]:
    """Of each row the run with the first teacher and seed."""
    first: dict[Row, PlannedRun] = {}
    for run in plan.runs:
        first.setdefault((run.table, run.row), run)
    return first


def _next_batches(studies: Sequence[_RowStudy]) -> list[tuple[Trial, ...]]:
    """The trials that come next: one of each row together, as far as they can be trained together."""
    one_of_each = itertools.zip_longest(*(study.next_trials() for study in studies))
    return [batch for trials in one_of_each for batch in trained_together(trial for trial in trials if trial)]


def _titles(batch: Sequence[Trial]) -> str:
    return f"{batch[0].title} and {len(batch) - 1} more" if len(batch) > 1 else batch[0].title


class _RowStudy:
    """The trials of one row."""

    def __init__(self, row: Row, first: PlannedRun, plan: ComparisonPlan, expected: Expected) -> None:
        self._row = row
        self._config = first.config.model_copy(update={"seed": _trial_seed(plan), "output": None})
        self._space = search_space(self._config, leaving_out=plan.varied)
        self._wanted = plan.tune if self._space else 0
        path = _journal(plan, row)
        self._path = path
        self._study = _opened(path)
        made_of = {
            "run_sha256": expected.sha256(self._config),
            "space": {name: [found.low, found.high, found.log] for name, found in self._space.items()},
        }
        if not self._study.trials:
            self._study.set_user_attr("made_of", made_of)
        elif self._study.user_attrs.get("made_of") != made_of:
            raise ConfigError(
                "the trials are of other settings, images, or another teacher",
                where=str(path),
                hint="give another --output, or remove that file to have the trials made again",
            )

    def next_trials(self) -> list[Trial]:
        """Those that are to be made now, none of which needs to know what another comes to; none at the end."""
        made = self._study.trials
        start = len(made) // _AT_ONCE * _AT_ONCE
        numbers = range(len(made) + 1, min(start + _AT_ONCE, self._wanted) + 1)
        if not numbers:
            return []
        chosen = self._choose(made[:start])
        return [
            Trial(self._row, number, settings := chosen[number - start - 1], with_settings(self._config, settings))
            for number in numbers
        ]

    def tell(self, trial: Trial, validation: Evaluation | None) -> None:
        """Keep what a trial has come to; None: it diverged."""
        from optuna.trial import TrialState, create_trial

        made = create_trial(
            state=TrialState.FAIL if validation is None else TrialState.COMPLETE,
            value=None if validation is None else validation.top1,
            params=dict(trial.settings),
            distributions=self._distributions(),
            user_attrs={} if validation is None else {"nll": validation.nll},
        )
        try:
            self._study.add_trial(made)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def found(self) -> Tuned:
        """The best of the trials that were asked for."""
        made = self._study.trials[: self._wanted]
        complete = [trial for trial in made if trial.value is not None]
        best = max(complete, key=lambda trial: (trial.value, -trial.user_attrs["nll"]), default=None)
        return Tuned(
            settings=best.params if best else None if made else {},
            validation_top1=best.value if best else None,
            validation_nll=best.user_attrs["nll"] if best else None,
            trials=len(made),
            diverged=len(made) - len(complete),
        )

    def _choose(self, made: Sequence[FrozenTrial]) -> list[dict[str, float]]:
        """The next settings, a function of the trials made so far and the seed: it does not matter when it is asked."""
        import optuna

        table, name = self._row
        seed = derived_seed(self._config.seed, "tuning", table, name, len(made)) % 2**32
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.add_trials(made)
        if not made:
            study.enqueue_trial(self._recipes_own())
        return [study.ask(self._distributions()).params for _ in range(_AT_ONCE)]

    def _recipes_own(self) -> dict[str, float]:
        """The settings as they are without tuning, those that are in the search space."""
        values: Mapping[str, Any] = {
            **{f"optimizer.{name}": value for name, value in self._config.optimizer.model_dump().items()},
            **{f"distill.{name}": value for name, value in getattr(self._config, "distill", {}).items()},
        }
        return {
            name: values[name]
            for name, found in self._space.items()
            if name in values and found.low <= values[name] <= found.high
        }

    def _distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution

        return {name: FloatDistribution(found.low, found.high, log=found.log) for name, found in self._space.items()}


def _trial_seed(plan: ComparisonPlan) -> int:
    taken = {run.seed for run in plan.runs}
    start = derived_seed(min(taken), "tuning") % 2**30  # a run's seed is below 2**31
    return next(seed for seed in itertools.count(start) if seed not in taken)


def _journal(plan: ComparisonPlan, row: Row) -> Path:
    return plan.folder / "tuning" / f"{file_name(*row)}.log"


def _opened(path: Path) -> Study:
    """The trials that a file keeps, a new one if there is none."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(study_name="trials", storage=storage, direction="maximize", load_if_exists=True)
        for trial in study.trials:
            if trial.value is not None and not isinstance(trial.value + trial.user_attrs["nll"], float):
                raise TypeError("accuracy and loss are no numbers")
    except OSError as error:
        raise storage_error(error, path) from error
    except Exception as error:  # whatever Optuna stumbles over in a file that somebody has changed
        raise CheckpointError(
            f"damaged: {type(error).__name__}: {error}",
            where=str(path),
            hint="remove that file to have its trials made again",
        ) from error
    return study
