"""How long a comparison takes, and how much room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillab.compare.finished import Expected, check_finished, is_complete
from distillab.compare.plan import ComparisonPlan
from distillab.compare.tuning import trials_made, with_tuned
from distillab.config import AnyConfig, DistillConfig, to_toml
from distillab.preview import preview_together
from distillab.runtime.device import choose_compute
from distillab.runtime.events import silent
from distillab.stages import ALONE, find_plan

_BYTES_A_NUMBER = 4
_COPIES_LEFT = 2  # the last weights and the best ones
_COPIES_SAVED = 4  # weights, moments, average and best ones, in each of the checkpoints that are kept


@dataclass(frozen=True)
class _Cost:
    """What a run takes by itself.

    Attributes:
        seconds: Of training, without those in which a trained teacher is asked.
        teacher_seconds: Those, by who learns from it.
        bytes: That it leaves, and its part of what is saved meanwhile.
    """

    seconds: float
    teacher_seconds: Counter[str]
    bytes: int


def estimate(plan: ComparisonPlan, *, allow_code: bool) -> dict[str, Any]:
    """What is left to do of a plan: runs, trials of tuning, time and disk space.

    Runs that differ in nothing but their seed, or in what tuning will find, are built and tried once. A teacher is
    asked once for all runs of a group; that its answers may be known from before is left out of account.

    Args:
        plan: Some of its runs may be complete.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        "rows" ({"table", "row", "runs", "left", "seconds" of each by itself}, teachers that are trained being the first
        row, and the trials of a row standing in a table "tuning"), "runs" and "runs_left" of all rows; and of what is
        left "seconds", "teacher_seconds" (those of them in which trained teachers are asked), "side_by_side" (on a
        GPU the runs of a group share it, and take less than that), "bytes" in the comparison's folder, and
        "cache_bytes" that the logits of teachers and assistants may take; ready for JSON.

    Raises:
        ConfigError: What is complete in the folder would come out otherwise now.
        DistillabError: Whatever a run would stumble over before its first step.
    """
    check_finished([*plan.teachers, *(run.config for run in plan.runs)], Expected(silent, allow_code=allow_code))
    whole = with_tuned(plan, {row: {} for row in plan.rows}) if plan.tune else plan
    costs = _Costs(plan, allow_code=allow_code)
    for group in whole.groups:
        costs.try_out([run.config for run in group.runs if not is_complete(run.folder)])
    rows: list[dict[str, Any]] = []
    seconds = teacher_seconds = 0.0
    num_bytes = 0

    def add(table: str, row: str, runs: int, left: int, config: AnyConfig, *, keeps_files: bool = True) -> None:
        nonlocal seconds, num_bytes
        cost = costs.of(config) if left else _Cost(0.0, Counter(), 0)
        rows.append({"table": table, "row": row, "runs": runs, "left": left, "seconds": cost.seconds})
        seconds += left * cost.seconds
        num_bytes += left * cost.bytes * keeps_files

    if plan.teachers:
        left = sum(not is_complete(teacher.output) for teacher in plan.teachers if teacher.output is not None)
        add("", "teacher", len(plan.teachers), left, plan.teachers[0])
    trials = trials_made(plan) if plan.tune else {}
    for table, row in whole.rows:
        runs = [run for run in whole.runs if (run.table, run.row) == (table, row)]
        add(table, row, len(runs), sum(not is_complete(run.folder) for run in runs), runs[0].config)
        if (made := trials.get((table, row))) is not None:
            tuning = ", ".join(filter(None, (table, "tuning")))
            add(tuning, row, plan.tune, max(0, plan.tune - made), runs[0].config, keeps_files=False)
    for group in whole.groups:
        teacher_seconds += costs.of_asking([run.config for run in group.runs if not is_complete(run.folder)])
    if plan.tune:
        rounds = plan.tune - min(trials.values())  # one trial of each row at the same time
        teacher_seconds += max(0, rounds) * costs.of_asking([run.config for run in plan.groups[0].runs])
    return {
        "rows": rows,
        "runs": sum(row["runs"] for row in rows),
        "runs_left": sum(row["left"] for row in rows),
        "seconds": seconds + teacher_seconds,
        "teacher_seconds": teacher_seconds,
        "side_by_side": choose_compute(plan.runs[0].config.device).device.type == "cuda",
        "bytes": num_bytes,
        "cache_bytes": costs.of_logits(plan),
    }


class _Costs:
    """Runs that are built and tried; those of equal settings but for the seed once."""

    def __init__(self, plan: ComparisonPlan, *, allow_code: bool) -> None:
        self._untaught = plan.teachers[0].model if plan.teachers else None
        self._num_groups = max(1, len(plan.groups))
        self._allow_code = allow_code
        self._known: dict[str, _Cost] = {}
        self._data: Mapping[str, Any] | None = None

    def try_out(self, configs: Sequence[AnyConfig]) -> None:
        """Build runs that can be carried out together, those that are not known yet, and try their steps."""
        unknown = {key: config for key, config in map(self._any_seed, configs) if key not in self._known}
        if unknown:
            seen = preview_together(list(unknown.values()), allow_code=self._allow_code)
            self._data = seen[0]["data"]
            for (key, config), one in zip(unknown.items(), seen, strict=True):
                self._known[key] = self._cost(config, one)

    def of(self, config: AnyConfig) -> _Cost:
        """What a run takes by itself."""
        self.try_out([config])
        return self._known[self._any_seed(config)[0]]

    def _any_seed(self, config: AnyConfig) -> tuple[str, AnyConfig]:
        """The settings without what makes no difference, and a key that says all of them."""
        changes: dict[str, Any] = {"output": None, "seed": 0}
        if self._untaught is not None and isinstance(config, DistillConfig):
            changes["teacher"] = self._untaught  # built, not loaded: its weights may not be there yet
        config = config.model_copy(update=changes)
        return to_toml(config), config

    def of_asking(self, configs: Sequence[AnyConfig]) -> float:
        """Seconds in which teachers are asked for runs that are carried out together."""
        longest: Counter[str] = Counter()
        for config in configs:
            longest |= self.of(config).teacher_seconds  # of each role the larger
        return longest.total()

    def of_logits(self, plan: ComparisonPlan) -> int:
        """Bytes of the logits that are kept: of test images, and of training images where they are seen again."""
        if self._data is None:  # nothing is left to do
            return 0
        config = plan.runs[0].config
        is_augmented = config.augment.is_on
        train = (config.views or (0 if is_augmented else 1)) * self._data["train"]
        test = self._data["test"]
        seeds = len({run.seed for run in plan.runs}) if is_augmented else 1  # other seeds, other views
        teachers = len({run.teacher for run in plan.runs})
        assistants = sum(find_plan(run.method).uses_assistant for run in plan.runs if run.method != ALONE)
        images = teachers * (seeds * train + test) + assistants * (train + test)
        most = max(run.config.cache_gib for run in plan.runs) * 2**30
        return int(min(most, images * self._data["classes"] * _BYTES_A_NUMBER))

    def _cost(self, config: AnyConfig, seen: Mapping[str, Any]) -> _Cost:
        learners = {stage["role"] for stage in seen["stages"]}
        if isinstance(config, DistillConfig):
            learners.discard("teacher")  # it is trained once, and not in this run
        stages = [stage for stage in seen["stages"] if stage["role"] in learners]
        teacher_seconds: Counter[str] = Counter()
        for stage in stages:
            teacher_seconds[stage["role"]] += stage["teacher_seconds"]
        parameters = sum(model["parameters"] for model in seen["models"] if model["role"] in learners)
        copies = _COPIES_LEFT + _COPIES_SAVED * config.checkpoint.keep / self._num_groups
        return _Cost(
            sum(stage["seconds"] for stage in stages) - teacher_seconds.total(),
            teacher_seconds,
            int(parameters * _BYTES_A_NUMBER * copies),
        )
