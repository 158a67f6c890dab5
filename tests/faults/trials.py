"""Runs of all plans on the tiny data set, and what each leaves if nothing happens to it."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

import tiny
from comparing_runs import differing
from distillab.config import DistillConfig, resolve_distill
from distillab.resume import resume
from distillab.run import run_together
from distillab.stages import PLANS
from faults.children import Board, Child, watch

RECIPE = {**tiny.RECIPE, "checkpoint": {"minutes": 0.0}}
TOGETHER = "together"
"""Stands where a plan's name does for all plans at once, carried out together on the same batches."""


class Trials:
    """Runs that are begun, resumed and compared.

    Args:
        home: Holds all folders.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._numbers = itertools.count()
        self._num_steps: dict[str, int] = {}
        self._recipe = home / "tiny.toml"
        home.mkdir()
        self._recipe.write_text(tomli_w.dumps(RECIPE))

    def new_folder(self) -> Path:
        """A name that nobody has used."""
        return self.home / f"run-{next(self._numbers)}"

    def begin(self, plan: str, folder: Path, rng: random.Random, **watching: Any) -> Child:
        """Begin a run that is saved after every step."""

        def work(board: Board) -> None:
            watch(board, rng, **watching)
            configs = [config(name, folder / name) for name in PLANS] if plan == TOGETHER else [config(plan, folder)]
            run_together(configs, allow_code=True, group=folder if plan == TOGETHER else None)

        return Child(work)

    def go_on(self, folder: Path, rng: random.Random, **watching: Any) -> Child:
        """Let a run go on; one that has written nothing yet begins again."""

        def work(board: Board) -> None:
            watch(board, rng, **watching)
            resume(folder, allow_code=True)

        return Child(work)

    def words(self, plan: str, folder: Path) -> list[str]:
        """The same run at the command line."""
        settings = ["--recipe", str(self._recipe), "--method", plan, "--output", str(folder)]
        return ["distill", *settings, "--allow-code", "--quiet"]

    @functools.cache  # noqa: B019 - lives as long as the campaign
    def whole(self, plan: str) -> Path:
        """The folder of a run that nothing has happened to."""
        folder = self.home / f"whole-{plan}"
        child = self.begin(plan, folder, random.Random(0))
        assert child.end() == 0, child.said
        self._num_steps[plan] = child.board.step
        return folder

    def stages(self, plan: str) -> list[range]:
        """The steps of each stage of a run, counted from 1 over all of it; those of a group count as one stage."""
        whole = self.whole(plan)
        if plan == TOGETHER:
            return [range(1, self._num_steps[plan] + 1)]
        result = json.loads((whole / "result.json").read_text())
        ends = list(itertools.accumulate(stage["steps"] for stage in stages_in(result)))
        return [range(begin + 1, end + 1) for begin, end in itertools.pairwise([0, *ends])]

    def trouble(self, plan: str, folder: Path) -> str:
        """How a run differs from one that nothing has happened to; empty if in nothing."""
        names = differing(self.whole(plan), folder)
        return f"{folder.name} ({plan}) differs in {', '.join(names)}" if names else ""


def stages_in(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a run in the order in which they were trained."""
    return [*result["teacher"].get("stages", []), *result["stages"]]


def config(plan: str, folder: Path) -> DistillConfig:
    """Settings of a run that is saved after every step."""
    return resolve_distill(RECIPE, {"method": plan, "output": folder})


def every_plan(rng: random.Random) -> Callable[[], str]:
    """Gives names of plans, each as often as the others, in a random order."""
    names = itertools.chain.from_iterable(rng.sample(sorted(PLANS), len(PLANS)) for _ in itertools.count())
    return functools.partial(next, names)
